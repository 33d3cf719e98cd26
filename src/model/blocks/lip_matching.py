"""Which of two anonymous voices moves with whose lips, and by how much the lips lag.

Axes: B batch, S = 2 voices, N STFT frames, K bands, C channels, P directions of the lips, L lags.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class Evidence:
    """What lips tell about voices.

    Attributes:
        order: (B,) log odds that voice i goes with lips i.
        lags: (B, S, L) probability of each lag of lips s, earliest lips first, in steps; even where there are no lips.
        likelihood: (B S, B S) log likelihood of all lips of the batch (columns) under all its voices (rows), up to what
            depends on the lips alone; None unless it was asked for.
    """

    order: Tensor
    lags: Tensor
    likelihood: Tensor | None = None


class MovementFromSound(nn.Module):
    """What a linear map of the sound does not tell of the movement of the lips: two convolutions along time.

    Args:
        features: of a frame of the sound.
        hidden: channels between.
        lip_directions: P.
        context: frames of the first convolution.
    """

    def __init__(self, features: int, hidden: int, lip_directions: int, context: int) -> None:
        super().__init__()
        self.first = nn.Conv1d(features, hidden, context, padding=context // 2)
        self.second = nn.Conv1d(hidden, hidden, 5, padding=2)
        self.out = nn.Conv1d(hidden, lip_directions, 1)

    def begin_as_identity(self) -> None:
        """Let it add nothing, as where it joins a trained linear map."""
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, sound: Tensor) -> Tensor:
        """Shape: (B, features, N) -> (B, P, N)."""
        return self.out(functional.silu(self.second(functional.silu(self.first(sound)))))


class LipMatching(nn.Module):
    """Puts two anonymous voices into the order of the lips.

    Who speaks is told by the whole recording, not by any stretch of it: what a voice does is summed up against what
    each pair of lips does over all frames, and the two orders are weighed by that. The lips enter as they are, without
    a weight of their own, so that there is nothing to learn faces by heart with. Swapping the lips swaps the voices.
    Lips may be out of step with the sound: every lag up to a largest one is weighed, each pair of lips having its own,
    and the odds of an order are those of its lags together.

    A score is the log likelihood of lips m under the movement v that a voice lets expect, of Gaussian noise:
    m v - v^2 / 2 in units of the noise, up to what depends on the lips alone. With both mouths the square cancels; with
    one it keeps the voice that moves more from looking the likelier one.

    Args:
        channels: C.
        num_bands: K.
        squeezed: channels a band keeps in the description of the sound.
        lip_directions: P.
        max_lag: steps that lips may come early or late; L = 2 max_lag + 1.
        hidden: channels of the network that adds to the linear map from the sound to the movement; 0 is the map alone.
        context: steps of sound around each that describe it.
        step: STFT frames between two that are looked at; lips are too slow for each frame of a short hop to count.
    """

    def __init__(
        self,
        channels: int,
        num_bands: int,
        squeezed: int,
        lip_directions: int,
        max_lag: int = 0,
        hidden: int = 0,
        context: int = 11,
        step: int = 1,
    ) -> None:
        super().__init__()
        self.max_lag, self.step = max_lag, step
        self.norm = nn.LayerNorm(channels)
        self.squeeze = nn.Linear(channels, squeezed)
        features = num_bands * squeezed
        self.sound = nn.Conv1d(features, lip_directions, context, padding=context // 2)
        self.more = MovementFromSound(features, hidden, lip_directions, context) if hidden else None
        self.log_noise = nn.Parameter(torch.zeros(lip_directions))  # variance of what the voice does not tell

    def evidence(
        self, voices: Tensor, lips: Tensor, used: Tensor, frames_per_second: float, *, across: bool = False
    ) -> Evidence:
        """Shape: voices (B, S, N, K, C), lips (B, S, N, P), used (B, S). `across` asks for the likelihood."""
        lips = lips[:, :, :: self.step]
        sound = self._movement(voices)
        lips = torch.where(used[:, :, None, None], lips - lips.mean(dim=2, keepdim=True), 0.0)
        with torch.autocast(sound.device.type, enabled=False):
            steps_per_second = frames_per_second / self.step
            return self._weigh(sound.float(), self._at_lags(lips.float()), used, steps_per_second, across)

    def by_frame(self, voices: Tensor, lips: Tensor, used: Tensor, frames_per_second: float) -> Tensor:
        """What every frame adds to the log odds that voice i goes with lips i, where the lips are in step.

        Shape: voices (B, S, N, K, C), lips (B, S, N, P), used (B, S) -> (B, N).
        """
        num_frames, lips = voices.shape[2], lips[:, :, :: self.step]
        sound = self._movement(voices)
        with torch.autocast(sound.device.type, enabled=False):
            lips = torch.where(
                used[:, :, None, None], lips.float() - lips.float().mean(dim=2, keepdim=True), 0.0
            )
            sound = sound.float()
            sound = (sound - sound.mean(dim=-1, keepdim=True)).unflatten(0, used.shape)  # (B, S, P, N)
            square = (sound.square() * self.log_noise.float().exp()[:, None]).sum(dim=2) / 2
            # With both mouths the squares cancel.
            product = ((sound[:, 0] - sound[:, 1]).transpose(1, 2) * (lips[:, 0] - lips[:, 1])).sum(dim=-1)
            alone = used[:, 0].float() - used[:, 1].float()
            evidence = product - alone[:, None] * (square[:, 0] - square[:, 1])
            evidence = evidence.repeat_interleave(self.step, dim=1)[:, :num_frames]
            return evidence / frames_per_second

    def _movement(self, voices: Tensor) -> Tensor:
        """Movement of lips that each voice lets expect. Shape: (B, S, N, K, C) -> (B S, P, N in steps)."""
        vectors = self.squeeze(self.norm(voices[:, :, :: self.step])).flatten(3).flatten(0, 1).transpose(1, 2)
        movement = self.sound(vectors)  # of (B S, K q, N)
        return movement if self.more is None else movement + self.more(vectors)

    def _weigh(
        self, sound: Tensor, lips: Tensor, used: Tensor, steps_per_second: float, across: bool
    ) -> Evidence:
        """Shape: sound (B S, P, N), lips (B, S, N, P, L), used (B, S)."""
        sound = sound - sound.mean(dim=-1, keepdim=True)
        square = (sound.square().sum(-1) * self.log_noise.float().exp()).sum(-1) / 2  # (B S,)
        product = torch.einsum("bvpn,bsnpl->bvsl", sound.unflatten(0, used.shape), lips)
        square_where_used = square.unflatten(0, used.shape)[:, :, None] * used[:, None]  # (B, V, S)
        score = (product - square_where_used[..., None]) / steps_per_second
        odds = score.logsumexp(dim=-1)
        order = odds[:, 0, 0] + odds[:, 1, 1] - odds[:, 0, 1] - odds[:, 1, 0]
        lags = score.softmax(dim=-1)
        same = order.sigmoid()[:, None, None]
        own, other = lags.diagonal(dim1=1, dim2=2), lags.flip(1).diagonal(dim1=1, dim2=2)  # (B, L, S)
        lags = (same * own + (1 - same) * other).transpose(1, 2)
        if not across:
            return Evidence(order, lags)
        product = torch.einsum("vpn,snpl->vsl", sound, lips.flatten(0, 1))
        return Evidence(order, lags, ((product - square[:, None, None]) / steps_per_second).logsumexp(dim=-1))

    def in_step(self, lips: Tensor, lags: Tensor) -> Tensor:
        """Lips brought into step with the sound. Shape: lips (B, S, N, V), lags (B, S, L) -> (B, S, N, V)."""
        if not self.max_lag:
            return lips
        padded = self._padded(lips, self.max_lag * self.step).transpose(0, 1)  # (V, B S, N + (L - 1) step)
        filters = lags.to(lips.dtype).flatten(0, 1)[:, None]  # one for each of the lips
        moved = functional.conv1d(padded, filters, groups=len(filters), dilation=self.step)
        return moved.permute(1, 2, 0).unflatten(0, lips.shape[:2])

    def _at_lags(self, lips: Tensor) -> Tensor:
        """Lips moved by every lag against the sound, edges held. Shape: (B, S, N, V) -> (B, S, N, V, L), N in steps.

        The first of the L shows at each step the lips max_lag steps before it: lips that came early are in step then.
        """
        if not self.max_lag:
            return lips[..., None]
        moved = self._padded(lips, self.max_lag).unfold(2, 2 * self.max_lag + 1, 1)  # (B S, V, N, L)
        return moved.transpose(1, 2).unflatten(0, lips.shape[:2])

    @staticmethod
    def _padded(lips: Tensor, width: int) -> Tensor:
        """Edges held for so many frames. Shape: (B, S, N, V) -> (B S, V, N + 2 width)."""
        return functional.pad(lips.flatten(0, 1).transpose(1, 2), (width, width), mode="replicate")

    def forward(self, voices: Tensor, order: Tensor, used: Tensor) -> Tensor:
        """Voices in the order of the lips, in doubt something of both orders.

        Shape: voices (B, S, N, K, C), order (B,) log odds, used (B, S) bool -> (B, S, N, K, C).
        """
        same = torch.where(used.any(dim=1), order.sigmoid(), 1.0)[:, None, None, None, None].to(voices.dtype)
        return same * voices + (1 - same) * voices.flip(1)
