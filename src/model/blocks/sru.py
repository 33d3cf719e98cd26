"""Simple recurrent unit: a recurrence whose matrix products do not wait for one another.

Axes: L steps, I input features, G = 3 or 4 products a direction, P = 2 directions, H hidden, B sequences.
Steps come first and sequences last: each step is one contiguous piece, and a window of K successive steps of
H features is K * H successive rows of the same memory, so that unfolding (`windows`) copies nothing.

Reference: Lei et al. 2018, "Simple recurrent units for highly parallelizable recurrence", eq. 1 to 4.
"""

import math

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

DIRECTIONS = 2
CANDIDATE, FORGET, RESET, HIGHWAY = range(4)


def windows(sequence: Tensor, kernel: int) -> Tensor:
    """Every run of `kernel` successive steps, stacked along the features: a view, rows ordered (step, feature).

    Shape: contiguous (L, I, B) -> (L - kernel + 1, kernel * I, B).
    """
    return sequence.unfold(0, kernel, 1).permute(0, 3, 1, 2).flatten(1, 2)


class StepwiseProduct(torch.autograd.Function):
    """One matrix times every step: (O, I), (L, I, B) -> (L, O, B).

    Autograd's own backward of a broadcast product writes one weight gradient a step and adds them up; this adds
    them where they arise.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, weight: Tensor, steps: Tensor) -> Tensor:
        ctx.save_for_backward(weight, steps)
        return torch.bmm(weight.expand(steps.shape[0], -1, -1), steps)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        weight, steps = ctx.saved_tensors
        for_weight = for_steps = None
        if ctx.needs_input_grad[0]:
            if weight.dtype in (torch.bfloat16, torch.float16):
                # One product: a sum in half precision would be rounded at every step.
                for_weight = torch.einsum("lob,lib->oi", grad, steps)
            else:
                for_weight = torch.zeros_like(weight).addbmm_(grad, steps.mT)
        if ctx.needs_input_grad[1]:
            for_steps = torch.bmm(weight.mT.expand(steps.shape[0], -1, -1), grad)
        return for_weight, for_steps


def stepwise_product(weight: Tensor, steps: Tensor) -> Tensor:
    """One matrix times every step, in the autocast precision where that is on.

    Shape: (O, I), (L, I, B) -> (L, O, B).
    """
    if torch.is_autocast_enabled(steps.device.type):
        dtype = torch.get_autocast_dtype(steps.device.type)
        weight, steps = weight.to(dtype), steps.to(dtype)
    return StepwiseProduct.apply(weight, steps)


class SimpleRecurrence(torch.autograd.Function):
    """The elementwise part of one layer, both directions.

    With z, a, s the candidate, the forget and the reset product, and c' the state before:
    f = sigmoid(a + v_f c' + b_f); c = f c' + (1 - f) z; r = sigmoid(s + v_r c' + b_r); h = r c + (1 - r) x.

    The forget gate sees the state, so the states are found step by step, with three operations each; gates and
    outputs that no step waits for are found for all steps at once. The hand-written backward needs one operation a
    step and spares autograd a thousand small nodes.

    States lie in one tensor with an empty step at either end: direction 0 reads the step before, direction 1 the
    step after.
    """

    @staticmethod
    def previous(states: Tensor) -> tuple[Tensor, Tensor]:
        """State before each step, by direction. Shape: (L + 2, P, H, B) -> two of (L, H, B)."""
        return states[:-2, 0], states[2:, 1]

    @staticmethod
    def forward(ctx: FunctionCtx, products: Tensor, skip: Tensor, state: Tensor, bias: Tensor) -> Tensor:
        """Shape: products (L, 3, P, H, B), skip x (L, P, H, B), state v and bias b (2, P, H, 1) ->
        h (L, P, H, B)."""
        candidate = products[:, CANDIDATE]
        length = candidate.shape[0]
        forget = products[:, FORGET] + bias[0]
        states = products.new_zeros(length + 2, *candidate.shape[1:])
        # (weight, gates, candidates, states before, states) of each direction, in its own order of steps
        walks = []
        for direction, (first, before, after) in enumerate([(0, 0, 1), (length - 1, 2, 1)]):
            order = slice(None) if first == 0 else slice(None, None, -1)
            walks.append(
                zip(
                    forget[:, direction].unbind(0)[order],
                    candidate[:, direction].unbind(0)[order],
                    states[before : before + length, direction].unbind(0)[order],
                    states[after : after + length, direction].unbind(0)[order],
                )
            )
        weights = state[0].expand_as(forget[0]).contiguous().unbind(0)
        for steps in zip(*walks):
            for weight, (gate, new, old, out) in zip(weights, steps):
                gate.addcmul_(weight, old).sigmoid_()
                torch.lerp(new, old, gate, out=out)
        reset = products[:, RESET] + bias[1]
        for direction, old in enumerate(SimpleRecurrence.previous(states)):
            reset[:, direction].addcmul_(state[1, direction], old)
        reset.sigmoid_()
        ctx.save_for_backward(candidate, skip, state, forget, reset, states)
        return torch.lerp(skip, states[1:-1], reset)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        candidate, skip, state, forget, reset, states = ctx.saved_tensors
        length = candidate.shape[0]
        before = torch.stack(SimpleRecurrence.previous(states), dim=1)
        products = grad.new_empty(length, 3, *candidate.shape[1:])
        torch.mul(grad * (states[1:-1] - skip), reset * (1 - reset), out=products[:, RESET])
        # d c / d a, and d c / d c' = f + v_f d c / d a
        slope = (before - candidate) * forget * (1 - forget)
        through = torch.addcmul(forget, state[0], slope)
        # What reaches each state: through its own h, through the reset gate of the next step, through the next state
        total = grad * reset
        later = products[:, RESET] * state[1]
        total[:-1, 0] += later[1:, 0]
        total[1:, 1] += later[:-1, 1]
        ahead = zip(
            total[:, 0].unbind(0)[-2::-1], total[:, 0].unbind(0)[:0:-1], through[:, 0].unbind(0)[:0:-1]
        )
        back = zip(total[:, 1].unbind(0)[1:], total[:, 1].unbind(0)[:-1], through[:, 1].unbind(0)[:-1])
        for steps in zip(ahead, back):
            for into, source, factor in steps:
                into.addcmul_(source, factor)
        torch.mul(total, 1 - forget, out=products[:, CANDIDATE])
        torch.mul(total, slope, out=products[:, FORGET])
        gates = products[:, FORGET : RESET + 1]
        for_bias = gates.sum(dim=(0, -1)).unsqueeze(-1)
        for_state = (gates * before[:, None]).sum(dim=(0, -1)).unsqueeze(-1)
        return products, grad * (1 - reset), for_state, for_bias


class SruLayer(nn.Module):
    """One bidirectional layer. Its highway x is the input where that is as wide as the output, else a product."""

    HIGHWAY_SCALE = math.sqrt(3)
    """Keeps the variance of the output at that of the input at the start (Lei et al. 2018, initialization)."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.num_products = 3 if input_size == DIRECTIONS * hidden_size else 4
        bound = math.sqrt(3 / input_size)
        rows = self.num_products * DIRECTIONS * hidden_size
        self.weight = nn.Parameter(torch.empty(rows, input_size).uniform_(-bound, bound))
        self.state = nn.Parameter(torch.zeros(2, DIRECTIONS, hidden_size, 1))
        self.bias = nn.Parameter(torch.zeros(2, DIRECTIONS, hidden_size, 1))

    def forward(self, steps: Tensor) -> Tensor:
        """Shape: (L, I, B) -> (L, P * H, B), direction 0 first."""
        rows = (self.num_products, DIRECTIONS, self.hidden_size)
        products = stepwise_product(self.weight, steps).unflatten(1, rows)
        highway = steps.unflatten(1, rows[1:]) if self.num_products == 3 else products[:, HIGHWAY]
        # Rounding would add up over the steps: the recurrence keeps the precision of its parameters.
        dtype = self.bias.dtype
        with torch.autocast(steps.device.type, enabled=False):
            skip = highway.to(dtype) * self.HIGHWAY_SCALE
            hidden = SimpleRecurrence.apply(products[:, :3].to(dtype), skip, self.state, self.bias)
        return hidden.flatten(1, 2)


class Sru(nn.Module):
    """Stack of bidirectional simple recurrent units.

    Args:
        input_size: I.
        hidden_size: H of each direction.
        num_layers: layers of the stack.
    """

    def __init__(self, input_size: int, hidden_size: int, num_layers: int) -> None:
        super().__init__()
        sizes = [input_size] + [DIRECTIONS * hidden_size] * (num_layers - 1)
        self.layers = nn.Sequential(*(SruLayer(size, hidden_size) for size in sizes))

    def forward(self, steps: Tensor) -> Tensor:
        """Shape: (L, I, B) -> (L, P * H, B)."""
        return self.layers(steps)
