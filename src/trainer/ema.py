"""Exponential moving average of a model's weights."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightAverage:
    """Keeps w_avg <- d w_avg + (1 - d) w, with d growing from 2 / 11 to `decay` over the first steps so that the
    random start is soon forgotten.

    Args:
        model: the model that is trained.
        decay: d in the long run, in [0, 1).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"trainer.ema_decay={decay} must be in [0, 1)")
        self.decay = decay
        self.updates = 0
        self.shadow = {name: value.detach().clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take in the weights after an optimizer step."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        pairs = [(self.shadow[name], value) for name, value in model.state_dict().items()]
        floats = [(a, b) for a, b in pairs if a.is_floating_point()]
        for average, value in floats:
            average.lerp_(value, 1 - decay)
        for average, value in pairs:
            if not average.is_floating_point():
                average.copy_(value)

    @contextmanager
    def swapped_in(self, model: nn.Module) -> Iterator[None]:
        """Inside the context the model carries the average; its own weights return afterwards."""
        own = {name: value.detach().clone() for name, value in model.state_dict().items()}
        model.load_state_dict(self.shadow)
        try:
            yield
        finally:
            model.load_state_dict(own)

    def state_dict(self) -> dict[str, Tensor]:
        """The averaged weights under the model's names."""
        return self.shadow

    def load_state_dict(self, state: dict[str, Tensor], updates: int) -> None:
        """Continue an average."""
        self.updates = updates
        for name, value in state.items():
            self.shadow[name].copy_(value)
