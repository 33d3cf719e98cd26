"""The simple recurrent unit against its equations, step by step, and what a step costs."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from src.model.blocks.sru import Sru, SruLayer, stepwise_product, windows


def layer(input_size: int, hidden: int = 3) -> SruLayer:
    """A layer in float64 with every parameter drawn at random, those that start at zero too."""
    torch.manual_seed(0)
    built = SruLayer(input_size, hidden).double()
    for parameter in built.parameters():
        nn.init.normal_(parameter)
    return built


def literal(layer: SruLayer, steps: torch.Tensor) -> torch.Tensor:
    """Lei et al. 2018, eq. 1 to 4, for one direction and one step after another."""
    length, features, batch = steps.shape
    hidden = layer.hidden_size
    weight = layer.weight.view(layer.num_products, 2, hidden, features)
    output = steps.new_zeros(length, 2, hidden, batch)
    for direction in range(2):
        c = steps.new_zeros(hidden, batch)
        for t in range(length) if direction == 0 else reversed(range(length)):
            x = steps[t]
            w, w_f, w_r = (weight[k, direction] for k in range(3))
            (v_f, v_r), (b_f, b_r) = layer.state[:, direction], layer.bias[:, direction]
            highway = (
                weight[3, direction] @ x if layer.num_products == 4 else x.view(2, hidden, batch)[direction]
            )
            f = torch.sigmoid(w_f @ x + v_f * c + b_f)
            r = torch.sigmoid(w_r @ x + v_r * c + b_r)
            c = f * c + (1 - f) * (w @ x)
            output[t, direction] = r * c + (1 - r) * highway * 3**0.5
    return output.flatten(1, 2)


@pytest.mark.parametrize("input_size", [5, 6])
@pytest.mark.parametrize("length", [1, 2, 9])
def test_values_and_gradients_are_those_of_the_equations(input_size, length):
    """Both with the highway (input as wide as the output) and with its product; both directions."""
    built = layer(input_size)
    steps = torch.randn(length, input_size, 4, dtype=torch.float64, requires_grad=True)
    seed = torch.randn(length, 6, 4, dtype=torch.float64)
    expected, found = literal(built, steps), built(steps)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
    inputs = [steps, *built.parameters()]
    for right, here in zip(
        torch.autograd.grad(expected, inputs, seed), torch.autograd.grad(found, inputs, seed)
    ):
        torch.testing.assert_close(here, right, atol=1e-11, rtol=0)


def test_gradients_in_half_precision_are_rounded_once_and_not_at_every_step():
    torch.manual_seed(0)
    weight = torch.randn(6, 5).bfloat16().requires_grad_()
    steps, seed = torch.randn(1000, 5, 2).abs().bfloat16(), torch.rand(1000, 6, 2).bfloat16()
    (found,) = torch.autograd.grad(stepwise_product(weight, steps), weight, seed)
    exact = torch.einsum("lob,lib->oi", seed.double(), steps.double())
    assert ((found.double() - exact) / exact).abs().max() < 2**-8


def test_gradcheck_through_a_stack():
    torch.manual_seed(0)
    stack = Sru(4, 2, 3).double()
    steps = torch.randn(5, 4, 2, dtype=torch.float64, requires_grad=True)
    names, values = zip(*stack.named_parameters())

    def run(steps, *parameters):
        return torch.func.functional_call(stack, dict(zip(names, parameters)), (steps,))

    assert torch.autograd.gradcheck(run, (steps, *(v.detach().requires_grad_() for v in values)))


def test_each_direction_sees_its_own_side():
    """A change at step 4 moves direction 0 from there on and direction 1 up to there, and nothing else."""
    built = layer(5)
    steps = torch.randn(9, 5, 1, dtype=torch.float64)
    other = steps.clone()
    other[4] += 1
    moved = (built(steps) - built(other)).abs().unflatten(1, (2, 3)).amax(dim=(2, 3)) > 1e-9
    expected = torch.arange(9)[:, None]
    assert (moved == torch.cat([expected >= 4, expected <= 4], dim=1)).all()


def test_windows_are_a_view_of_successive_steps():
    sequence = torch.randn(10, 3, 2)
    unfolded = windows(sequence, 4)
    assert unfolded.data_ptr() == sequence.data_ptr()
    torch.testing.assert_close(unfolded[5, :, 1], sequence[5:9, :, 1].flatten())


class Counted(TorchDispatchMode):
    """Counts the operations that are run, but for views."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))


def operations(length: int) -> tuple[int, int]:
    """Of four layers in both directions, on the way forward and on the way back."""
    torch.manual_seed(0)
    stack = Sru(8, 4, 4)
    with Counted() as forward:
        hidden = stack(torch.randn(length, 8, 3))
    with Counted() as backward:
        hidden.sum().backward()
    return forward.count, backward.count


def test_a_step_costs_three_operations_a_direction_forward_and_one_backward():
    """All else is done for all steps at once. Which is quicker, this or a compiled LSTM, depends on the processor."""
    (short, short_back), (long, long_back) = operations(20), operations(30)
    assert (long - short) / (10 * 4 * 2) == 3
    assert (long_back - short_back) / (10 * 4 * 2) == 1
