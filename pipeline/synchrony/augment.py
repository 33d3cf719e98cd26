"""Augmentation of mouths and mel frames, a clip at a time; all draw from torch's generator.

Axes: F video frames, N mel frames, M mel bands, H rows, W columns.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from pipeline.draw import chance, uniform

HEAD_RADIUS = 1.6  # of the cylinder that stands for a head, in halves of the picture's width


class MouthAugment:
    """Another face, camera, light and crop, for a whole clip; and cuts, where all but the face change at once.

    Cuts teach that a jump of the picture tells nothing: joined clips have one where the voice changes too, and a
    network would rather learn that than lips.

    Args:
        rotation_deg: at most so far to either side; what lies beyond the picture is black, or repeats its edge.
        turn_deg: the head is turned at most so far to either side.
        scale: smallest and largest magnification.
        shift_px: at most so far along each axis.
        brightness: smallest and largest gain.
        gamma: smallest and largest exponent.
        p_blur: how often it is blurred, or seen at half the resolution.
        p_cut: how often the clip has a cut, at any time.
        p_hold: how often some frames are lost, and the last one seen stays.
        p_cover: how often a rectangle is grey.
        noise: largest standard deviation of pixel noise, of 255.
        p_face: how often the face of another clip, its mean over time, shows through or replaces the own one under what
            moves.
        movement: smallest and largest gain of what moves.
    """

    def __init__(
        self,
        *,
        rotation_deg: float,
        turn_deg: float,
        scale: Sequence[float],
        shift_px: float,
        brightness: Sequence[float],
        gamma: Sequence[float],
        p_blur: float,
        p_cut: float,
        p_hold: float,
        p_cover: float,
        noise: float,
        p_face: float,
        movement: Sequence[float],
    ) -> None:
        self.rotation_deg, self.turn_deg = rotation_deg, turn_deg
        self.scale, self.shift_px = tuple(scale), shift_px
        self.brightness, self.gamma = tuple(brightness), tuple(gamma)
        self.p_blur, self.p_cut, self.p_hold, self.p_cover, self.noise = p_blur, p_cut, p_hold, p_cover, noise
        self.p_face, self.movement = p_face, tuple(movement)

    def __call__(self, frames: Tensor, other: Tensor) -> Tensor:
        """Shape: (F, H, W) in 0..255, and so another clip, whose face may be taken -> (F, H, W)."""
        frames = self._face(frames, other)
        flip = chance(0.5)  # of the person, so that it lasts over a cut
        cut = int(uniform(1, len(frames))) if len(frames) > 1 and chance(self.p_cut) else len(frames)
        parts = [self._shot(part, flip) for part in (frames[:cut], frames[cut:]) if len(part)]
        return self._hold(torch.cat(parts))

    def _face(self, frames: Tensor, other: Tensor) -> Tensor:
        own = face = frames.mean(dim=0)
        if chance(self.p_face):
            face = own + uniform(0, 1) * (other.mean(dim=0) - own)
        return face + uniform(*self.movement) * (frames - own)

    def _shot(self, frames: Tensor, flip: bool) -> Tensor:
        angle = math.radians(uniform(-self.rotation_deg, self.rotation_deg))
        size = uniform(*self.scale)
        cos, sin = math.cos(angle) / size, math.sin(angle) / size
        shift = [uniform(-self.shift_px, self.shift_px) * 2 / frames.shape[-1] for _ in range(2)]
        mirror = -1 if flip else 1
        matrix = torch.tensor([[[mirror * cos, -mirror * sin, shift[0]], [sin, cos, shift[1]]]])
        grid = functional.affine_grid(matrix, (1, 1, *frames.shape[1:]), align_corners=False)
        grid[..., 0] = seen_when_turned(grid[..., 0], math.radians(uniform(-self.turn_deg, self.turn_deg)))
        edge = "zeros" if chance(0.5) else "border"
        frames = functional.grid_sample(frames[None], grid, padding_mode=edge, align_corners=False)
        if chance(self.p_blur):
            if chance(0.5):
                frames = functional.avg_pool2d(frames, 3, stride=1, padding=1)
            else:
                small = functional.avg_pool2d(frames, 2)
                frames = functional.interpolate(small, scale_factor=2, mode="bilinear")
        if chance(self.p_cover):
            height, width = (int(uniform(0.15, 0.4) * side) for side in frames.shape[2:])
            top, left = (
                int(uniform(0, side - part)) for side, part in zip(frames.shape[2:], (height, width))
            )
            frames[:, :, top : top + height, left : left + width] = uniform(0, 160)
        frames = (frames[0] / 255).clamp_min(0).pow(uniform(*self.gamma)) * uniform(*self.brightness) * 255
        return frames.add_(torch.randn_like(frames), alpha=uniform(0, self.noise)).clamp_(0, 255)

    def _hold(self, frames: Tensor) -> Tensor:
        if not chance(self.p_hold):
            return frames
        order = torch.arange(len(frames))
        for _ in range(int(uniform(1, 4))):
            start = int(uniform(0, len(frames) - 1))
            order[start : start + 1 + int(uniform(1, 4))] = order[start]
        return frames[order]


def seen_when_turned(across: Tensor, angle: float) -> Tensor:
    """Where in the frontal picture lies what is seen of a head that is turned about its vertical axis.

    The head is a cylinder seen from far away. The middle of the picture, the mouth, stays there; what is beyond the
    outline of the head is its outline.

    Args:
        across: horizontal places in the picture of the turned head, -1 to 1 from edge to edge.
        angle: in radians.

    Returns:
        Places in the frontal picture, of the same shape.
    """
    around = torch.asin((across / HEAD_RADIUS + math.sin(angle)).clamp(-1, 1)) - angle
    return HEAD_RADIUS * around.sin()


class SoundAugment:
    """Another voice and another microphone: mel bands shifted, tilted, masked; another voice beneath.

    Args:
        shift_bands: at most so many mel bands up or down, which is another throat.
        tilt: at most so much added to the lowest band and taken from the highest, in nepers of energy.
        mask_bands: at most so many adjacent bands are hidden.
        p_voice: how often another voice is heard too.
        voice_db: how much quieter that one is, lowest and highest.
        noise: standard deviation of noise on the log energies, at most.
    """

    def __init__(
        self,
        *,
        shift_bands: int,
        tilt: float,
        mask_bands: int,
        p_voice: float,
        voice_db: Sequence[float],
        noise: float,
    ) -> None:
        self.shift_bands, self.tilt, self.mask_bands = shift_bands, tilt, mask_bands
        self.p_voice, self.voice_db, self.noise = p_voice, tuple(voice_db), noise

    def __call__(self, mel: Tensor, other: Tensor) -> Tensor:
        """Shape: mel (M, N), other (M, N), which may be heard beneath -> (M, N)."""
        if chance(self.p_voice):
            level = mel.exp().mean() / other.exp().mean() * 10 ** (-uniform(*self.voice_db) / 10)
            mel = (mel.exp() + other.exp() * level).log()
        bands = mel.shape[0]
        shift = round(uniform(-self.shift_bands, self.shift_bands))
        mel = mel[(torch.arange(bands) + shift).clamp(0, bands - 1)]
        mel = mel + uniform(-self.tilt, self.tilt) * torch.linspace(1, -1, bands)[:, None]
        mel = mel + torch.randn_like(mel) * uniform(0, self.noise)
        width = int(uniform(0, self.mask_bands + 1))
        low = int(uniform(0, bands - width))
        mel[low : low + width] = mel.mean()
        return mel
