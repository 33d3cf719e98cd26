"""Multiply-accumulates (MACs) of a forward pass, by one rule on every device.

The rule: one multiplication with its addition is one MAC. Counted are

- matmul: every matrix, batched or matrix-vector product, whatever calls it (linear layers, einsum), and scaled
  dot-product attention as the two products it is, masked places included;
- convolution, also transposed, grouped and dilated: products with the zeros of the padding included;
- recurrence: in LSTM, GRU and plain RNN every weight matrix once a step, sequence and direction;
- fourier: a real transform of length N is 5/2 N log2 N operations, a complex one 5 N log2 N (convention of Frigo and
  Johnson, "The design and implementation of FFTW3", 2005), and two operations are one MAC.

Elementwise work, norms, activations, pooling, interpolation and copies are not counted. A bias is not either.

In inference mode PyTorch shows layers such as `lstm` or `scaled_dot_product_attention` whole, before it chooses a
kernel for the device, so CPU and GPU give the same count although fused kernels differ.

Axes: B batch, L places, E and V channels of keys and values.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

aten = torch.ops.aten
KINDS = ("matmul", "convolution", "recurrence", "fourier")


@dataclass(frozen=True)
class MacCount:
    """MACs of one call.

    Attributes:
        total: by this module's rule.
        by_kind: the same by kind of operation.
        flop_counter: half of what `torch.utils.flop_counter` sees, matmuls and convolutions: published figures are
            mostly of this kind. It sees a recurrence or attention only where the device has no fused kernel for it.
    """

    total: int
    by_kind: dict[str, int]
    flop_counter: int

    def __add__(self, other: "MacCount") -> "MacCount":
        by_kind = {kind: self.by_kind[kind] + other.by_kind[kind] for kind in KINDS}
        return MacCount(self.total + other.total, by_kind, self.flop_counter + other.flop_counter)


def count_macs(call: Callable[[], Any]) -> MacCount:
    """Count one call, run without gradients.

    Args:
        call: a forward pass, without arguments.
    """
    fast_attention = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # it would hide a whole attention layer in one operation
    try:
        # The mode entered last sees an operation first, and whole.
        with torch.inference_mode(), FlopCounterMode(display=False) as published, _Counter() as counter:
            call()
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_attention)
    by_kind = {kind: counter.macs[kind] for kind in KINDS}
    return MacCount(sum(by_kind.values()), by_kind, published.get_total_flops() // 2)


class _Counter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.macs: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        kind, formula = _FORMULAS.get(func.overloadpacket, (None, None))
        if formula is None:
            with self:
                parts = func.decompose(*args, **kwargs)
            return func(*args, **kwargs) if parts is NotImplemented else parts
        result = func(*args, **kwargs)
        self.macs[kind] += formula(result, *args)
        return result


def _product(left: Tensor, right: Tensor) -> int:
    """(..., n, k) times (..., k, m)."""
    return left.numel() * right.shape[-1] * _factor(left)


def _inner(left: Tensor) -> int:
    """(..., k) times (k)."""
    return left.numel() * _factor(left)


def _factor(values: Tensor) -> int:
    return 4 if values.is_complex() else 1


def _convolution(
    result: Tensor,
    signal: Tensor,
    weight: Tensor,
    bias: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    *rest: Any,
) -> int:
    """Every weight once for each place of the output, or of the input where that is spread (transposed)."""
    places = signal if rest[0] else result
    return places.numel() // places.shape[1] * weight.numel() * _factor(signal)


def _attention(result: Tensor, query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> int:
    """query (..., L, E), key (..., L', E), value (..., L', V): L L' (E + V) a head."""
    rows = query.numel() // query.shape[-1]
    return rows * key.shape[-2] * (query.shape[-1] + value.shape[-1])


def _recurrence(result: Any, sequence: Tensor, *rest: Any) -> int:
    """Padded (B, T, C) or packed (sum of lengths, C) sequences; weights are the last list of tensors."""
    weights = next(item for item in reversed(rest) if isinstance(item, list | tuple))
    steps = sequence.numel() // sequence.shape[-1]
    return steps * sum(weight.numel() for weight in weights if weight.ndim == 2)


def _cell(
    result: Any, inputs: Tensor, hidden: Any, input_weight: Tensor, hidden_weight: Tensor, *rest: Any
) -> int:
    rows = inputs.numel() // inputs.shape[-1]
    return rows * (input_weight.numel() + hidden_weight.numel())


def _fourier(length: int, transforms: float, *, real: bool) -> int:
    operations = (2.5 if real else 5.0) * length * math.log2(length) * transforms
    return round(operations / 2)


def _length(signal: Tensor, axes: Sequence[int]) -> int:
    return math.prod(signal.shape[axis] for axis in axes)


def _r2c(result: Tensor, signal: Tensor, axes: Sequence[int], *rest: Any) -> int:
    length = _length(signal, axes)
    return _fourier(length, signal.numel() / length, real=True)


def _c2r(result: Tensor, spectrum: Tensor, axes: Sequence[int], *rest: Any) -> int:
    length = _length(result, axes)
    return _fourier(length, result.numel() / length, real=True)


def _c2c(result: Tensor, signal: Tensor, axes: Sequence[int], *rest: Any) -> int:
    length = _length(signal, axes)
    return _fourier(length, signal.numel() / length, real=False)


# Operation -> kind and MACs of (result, *arguments).
_FORMULAS: dict[Any, tuple[str, Callable[..., int]]] = {
    aten.mm: ("matmul", lambda result, a, b: _product(a, b)),
    aten.bmm: ("matmul", lambda result, a, b: _product(a, b)),
    aten.addmm: ("matmul", lambda result, bias, a, b: _product(a, b)),
    aten._addmm_activation: ("matmul", lambda result, bias, a, b: _product(a, b)),
    aten.baddbmm: ("matmul", lambda result, bias, a, b: _product(a, b)),
    aten.addbmm: ("matmul", lambda result, bias, a, b: _product(a, b)),
    aten.mv: ("matmul", lambda result, a, b: _inner(a)),
    aten.addmv: ("matmul", lambda result, bias, a, b: _inner(a)),
    aten.dot: ("matmul", lambda result, a, b: _inner(a)),
    aten.vdot: ("matmul", lambda result, a, b: _inner(a)),
    aten.scaled_dot_product_attention: ("matmul", _attention),
    aten.convolution: ("convolution", _convolution),
    aten.lstm: ("recurrence", _recurrence),
    aten.gru: ("recurrence", _recurrence),
    aten.rnn_tanh: ("recurrence", _recurrence),
    aten.rnn_relu: ("recurrence", _recurrence),
    aten.lstm_cell: ("recurrence", _cell),
    aten.gru_cell: ("recurrence", _cell),
    aten.rnn_tanh_cell: ("recurrence", _cell),
    aten.rnn_relu_cell: ("recurrence", _cell),
    aten._fft_r2c: ("fourier", _r2c),
    aten._fft_c2r: ("fourier", _c2r),
    aten._fft_c2c: ("fourier", _c2c),
}
