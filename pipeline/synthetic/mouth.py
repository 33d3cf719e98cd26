"""Pictures of an articulation: a lower face at 25 fps whose lips follow the same tracks as the voice.

Axes: F frames, rows and columns of 96 pixels. Lengths on the face are in half widths of the mouth at rest.
"""

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter, gaussian_filter1d

from pipeline.synthetic.articulation import CONTROL_HZ, Articulation

FRAME_RATE_HZ = 25
SIZE = 96
CHUNK_FRAMES = 5  # what fits the processor's cache, and bounds the memory of long utterances


@dataclass(frozen=True)
class Look:
    """What makes one speaker's face: lengths in half mouth widths, grey levels 0..255, angles in radians."""

    skin: float
    lip_contrast: float
    inside: float
    teeth: float
    half_width_px: float
    upper_lip: float
    lower_lip: float
    opening_gain: float
    centre_px: tuple[float, float]
    roll: float
    yaw: float
    light: tuple[float, float]
    moustache: float
    beard: float
    fold: float
    blur_px: float
    noise: float
    texture: np.ndarray  # (SIZE, SIZE), unit variance

    @classmethod
    def draw(cls, rng: np.random.Generator) -> "Look":
        texture = gaussian_filter(rng.standard_normal((SIZE, SIZE)), rng.uniform(1.0, 3.0), mode="wrap")
        return cls(
            skin=rng.uniform(95.0, 185.0),
            lip_contrast=rng.uniform(15.0, 45.0),
            inside=rng.uniform(15.0, 45.0),
            teeth=rng.uniform(0.0, 0.8),
            half_width_px=rng.uniform(21.0, 28.0),
            upper_lip=rng.uniform(0.16, 0.30),
            lower_lip=rng.uniform(0.22, 0.40),
            opening_gain=rng.uniform(0.8, 1.2),
            centre_px=(rng.uniform(-4.0, 4.0), rng.uniform(-5.0, 3.0)),
            roll=rng.normal(0.0, 0.07),
            yaw=rng.uniform(-0.4, 0.4),
            light=(rng.uniform(-0.20, 0.20), rng.uniform(-0.15, 0.15)),
            moustache=rng.uniform(0.15, 0.6) if rng.random() < 0.3 else 0.0,
            beard=rng.uniform(0.1, 0.5) if rng.random() < 0.25 else 0.0,
            fold=rng.uniform(0.0, 14.0),
            blur_px=rng.uniform(0.5, 1.1),
            noise=rng.uniform(1.0, 3.5),
            texture=(texture / texture.std()).astype(np.float32),
        )


def film(look: Look, motion: Articulation, rng: np.random.Generator) -> np.ndarray:
    """Film an articulation; frame k shows the mean position over samples 640 k .. 640 k + 639 of the voice.

    Shape:
        uint8 (F, 96, 96) with F = N // 40.
    """
    per_frame = CONTROL_HZ // FRAME_RATE_HZ
    num_frames = len(motion.opening) // per_frame
    opening, spread = (
        track[: num_frames * per_frame].reshape(num_frames, per_frame).mean(axis=1).astype(np.float32)
        for track in (motion.opening, motion.spread)
    )
    # Head sway: column and row in pixels, roll in radians; where the head starts from differs by utterance.
    drift = gaussian_filter1d(rng.standard_normal((num_frames + 40, 3)), 8.0, axis=0)[20 : 20 + num_frames]
    pose = (drift * (5.0, 4.0, 0.08) + rng.normal(0.0, (1.2, 1.2, 0.02), 3)).astype(np.float32)
    frames = np.empty((num_frames, SIZE, SIZE), dtype=np.uint8)
    for first in range(0, num_frames, CHUNK_FRAMES):
        span = slice(first, first + CHUNK_FRAMES)
        picture = _draw(look, opening[span], spread[span], pose[span])
        picture = gaussian_filter(picture, (0.0, look.blur_px, look.blur_px), truncate=2.5)
        picture += look.noise * rng.standard_normal(picture.shape, dtype=np.float32)
        frames[span] = np.clip(picture + 0.5, 0, 255).astype(np.uint8)
    return frames


def _draw(look: Look, opening: np.ndarray, spread: np.ndarray, pose: np.ndarray) -> np.ndarray:
    """Noise-free pictures float32 (F, 96, 96) of lips with opening (F,) and spread (F,) at pose (F, 3)."""
    x, y = _face_coordinates(look, pose)
    opening, spread = opening[:, None, None], spread[:, None, None]
    half = 1.0 + 0.20 * spread - 0.08 * opening
    pout = 1.0 + 0.25 * np.maximum(-spread, 0.0) - 0.2 * np.maximum(spread, 0.0)
    gap = opening**0.75 * np.float32(look.opening_gain)  # lips part faster than the jaw drops
    arch = np.maximum(1.0 - (x / half) ** 2, 0.0)
    inner_arch = np.maximum(1.0 - (x / (0.86 * half)) ** 2, 0.0)
    bow = 1.0 - 0.2 * np.maximum(1.0 - (x / 0.22) ** 2, 0.0)  # the dip in the middle of the upper lip
    inner_top, inner_bottom = -0.16 * gap * inner_arch, 0.72 * gap * np.sqrt(inner_arch)
    outer_top = -(0.16 * gap + look.upper_lip * pout) * arch * bow
    outer_bottom = (0.72 * gap + look.lower_lip * pout) * np.sqrt(arch)

    face = look.skin + 4.0 * look.texture[None]
    # Shadow of the nose, nostrils, folds beside the mouth; the shadow under the lower lip drops with the jaw.
    face = face - 0.25 * look.skin * _bump(y + 1.7, 0.5) * _bump(x, 0.8)
    face -= 0.25 * look.skin * _bump(y + 1.6, 0.16) * _bump(np.abs(x) - 0.28, 0.18)
    face -= look.fold * _bump(np.abs(x) - 1.3 - 0.12 * spread - 0.3 * y, 0.22) * _bump(y + 0.5, 1.1)
    face -= 16.0 * _bump(y - outer_bottom - 0.16, 0.16) * _edge(0.8 - np.abs(x), 0.4)
    if look.moustache:
        hair = (
            _edge(outer_top + 0.02 - y, 0.10)
            * _edge(y + 0.72 - 0.35 * x**2, 0.20)
            * _edge(1.0 - np.abs(x), 0.3)
        )
        face *= 1.0 - look.moustache * hair
    if look.beard:
        face *= 1.0 - look.beard * _edge(y - outer_bottom - 0.5 + 0.25 * np.abs(x), 0.3)
    lips = look.skin - look.lip_contrast * (1.0 + 0.4 * _edge(0.5 * (inner_top + inner_bottom) - y, 0.05))
    shine = (
        0.35
        * look.lip_contrast
        * _bump(y - 0.5 * (inner_bottom + outer_bottom), 0.10)
        * _edge(0.6 - np.abs(x), 0.4)
    )
    lip_mask = _edge(y - outer_top, 0.05) * _edge(outer_bottom - y, 0.05) * _edge(half - np.abs(x), 0.05)
    face += lip_mask * (lips + shine - face)
    teeth = look.teeth * _edge(inner_top + 0.20 - y, 0.04) * _edge(opening - 0.25, 0.2)
    tongue = 0.25 * _edge(y - inner_bottom + 0.22, 0.10) * _edge(opening - 0.4, 0.2)
    inside = look.inside + (teeth + tongue) * (look.skin - look.inside)
    inside_mask = _edge(y - inner_top, 0.045) * _edge(inner_bottom - y, 0.045)
    inside_mask *= _edge(0.88 * half - np.abs(x), 0.06)
    face += inside_mask * (inside - face)
    return face * (1.0 + look.light[0] * 0.6 * x + look.light[1] * 0.6 * y)


def _face_coordinates(look: Look, pose: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where on the face each pixel (F, 96, 96) lies, x to the right and y down from the mouth's centre."""
    rows, columns = np.mgrid[:SIZE, :SIZE].astype(np.float32) - np.float32((SIZE - 1) / 2)
    column = columns - np.float32(look.centre_px[0]) - pose[:, 0, None, None]
    row = rows - np.float32(look.centre_px[1]) - pose[:, 1, None, None]
    angle = np.float32(look.roll) + pose[:, 2, None, None]
    scale = np.float32(1.0 / look.half_width_px)
    x = (np.cos(angle) * column + np.sin(angle) * row) * scale
    y = (np.cos(angle) * row - np.sin(angle) * column) * scale
    # A turned head shows one half of the mouth foreshortened.
    x *= 1.0 + np.float32(look.yaw) * x / (1.0 + np.abs(x))
    return x, y


def _edge(distance: np.ndarray, softness: float) -> np.ndarray:
    """Ramp from 0 outside to 1 inside a contour; ``distance`` is positive inside."""
    return np.clip(0.5 + distance * np.float32(0.5 / softness), 0.0, 1.0)


def _bump(distance: np.ndarray, width: float) -> np.ndarray:
    """Smooth hill of height 1 and the given half width, cheaper than a Gaussian."""
    return np.maximum(1.0 - (distance * np.float32(1.0 / width)) ** 2, 0.0) ** 2
