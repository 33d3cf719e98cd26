"""Seeded weights: random, never trained, and no lip reader, for the demo and the tests.

The networks are too deep for plain random weights: without statistics that fit the input, activations grow or
fade from layer to layer and all clips look alike at the end. Here the batch norms' statistics are measured,
layer by layer, on procedurally drawn mouths; what comes out is a well-conditioned random projection of the
picture, from which, say, the mouth's opening can be read linearly.

    python -m pipeline.lipreading.seeded --network lrw_snv05x_tcn1x --seed 0 --out FILE

Axes: N clips, T video frames (25 per second), H height, W width.
"""

import argparse
import io
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import nn

from pipeline.lipreading.dense_tcn import SqueezeExcitation
from pipeline.lipreading.network import LipReader
from pipeline.lipreading.registry import NETWORKS, build
from pipeline.mouths import CROP, FRAME_RATE_HZ, normalise

SEEDED_KIND = "seeded random weights, not a lip reader"
_CALIBRATION_CLIPS = 16
_CALIBRATION_FRAMES = 5
SHIFT = 3.0  # of every batch norm, in standard deviations of its output
SMOOTHNESS_TAPS = 1.5  # how far a filter's neighbouring taps agree
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def draw_mouths(
    rng: np.random.Generator, *, num_clips: int, num_frames: int
) -> tuple[np.ndarray, np.ndarray]:
    """Draws dark, moving, mouth-like ellipses with a rim of lips on a shaded face.

    Every clip has its own place, size, greys, light and rhythm; opening and width move smoothly and apart.

    Returns:
        pictures uint8 (N, T, 88, 88), openings float64 (N, T): half the mouth's height, in pixels.
    """
    rows, columns = np.mgrid[:CROP, :CROP] - (CROP - 1) / 2
    pictures = np.empty((num_clips, num_frames, CROP, CROP), dtype=np.uint8)
    openings = np.empty((num_clips, num_frames))
    for n in range(num_clips):
        centre_y, centre_x = rng.uniform(-8, 8, size=2)
        skin, contrast, lips = rng.uniform(110, 180), rng.uniform(50, 90), rng.uniform(10, 40)
        light_y, light_x = rng.uniform(-0.6, 0.6, size=2)
        rim, widest, tallest = rng.uniform(4, 8), rng.uniform(20, 30), rng.uniform(9, 15)
        openings[n] = 1 + (tallest - 1) * _wander(rng, num_frames)
        half_width = widest * (0.75 + 0.25 * _wander(rng, num_frames))
        sway_y, sway_x = (4 * (_wander(rng, num_frames) - 0.5) for _ in range(2))
        for t in range(num_frames):
            y, x = rows - centre_y - sway_y[t], columns - centre_x - sway_x[t]
            inner = _ellipse(y, x, openings[n, t], half_width[t])
            outer = _ellipse(y, x, openings[n, t] + rim, half_width[t] + rim)
            face = skin + light_y * y + light_x * x - lips * outer - contrast * inner
            face += rng.normal(0, 3, size=face.shape)
            pictures[n, t] = np.clip(np.rint(face), 0, 255)
    return pictures, openings


def _wander(rng: np.random.Generator, num_frames: int) -> np.ndarray:
    """A smooth random course in 0..1: three sinusoids of syllable rates."""
    seconds = np.arange(num_frames) / FRAME_RATE_HZ
    rates_hz, phases = rng.uniform(0.5, 5, size=3), rng.uniform(0, 2 * np.pi, size=3)
    return 0.5 + np.sin(2 * np.pi * rates_hz * seconds[:, None] + phases).sum(axis=1) / 6


def _ellipse(y: np.ndarray, x: np.ndarray, half_height: float, half_width: float) -> np.ndarray:
    """1 inside, 0 outside, with an edge about two pixels soft."""
    radius = np.hypot(y / half_height, x / half_width)
    return np.clip(0.5 + (1 - radius) * half_height / 2, 0, 1)


def seed_weights(network: LipReader, seed: int) -> None:
    """Fills every parameter at random and measures every batch norm's statistics, in place.

    Plain independent weights make so deep a network chaotic: after some twenty rectified layers two pictures
    that hardly differ lie as far apart as any two. So filters are smooth, sum to zero over their inputs, and
    batch norms shift by SHIFT standard deviations, which keeps most units in the linear part of their
    activation. Variances follow He: 2 / fan-in, 1 / fan-in before a sigmoid gate, which must not saturate.

    Random numbers come from NumPy and the measuring runs in float64, so that the order in which a processor
    adds up hardly ever shows in the float32 results.

    Reference:
        He et al., "Delving deep into rectifiers", 2015, eq. 10.
    """
    rng = np.random.default_rng(seed)
    gates = {id(layer.fc[2]) for layer in network.modules() if isinstance(layer, SqueezeExcitation)}
    with torch.no_grad():
        for layer in network.modules():
            if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear):
                gain = 1 if id(layer) in gates else 2
                layer.weight.copy_(torch.from_numpy(_filters(rng, tuple(layer.weight.shape), gain)))
                if layer.bias is not None:
                    layer.bias.zero_()
            elif isinstance(layer, _BATCH_NORMS):
                layer.reset_parameters()
                layer.bias.fill_(SHIFT)
            elif isinstance(layer, nn.PReLU):
                layer.weight.fill_(0.25)
    _calibrate(network, rng)


def _filters(rng: np.random.Generator, shape: tuple[int, ...], gain: float) -> np.ndarray:
    """float32 `shape` = (outputs, inputs, kernel axes...), each output's squares summing to `gain`."""
    values = rng.standard_normal(shape, dtype=np.float32).astype(np.float64)
    for axis, size in enumerate(shape[2:], start=2):
        if size > 1:
            values = np.moveaxis(np.moveaxis(values, axis, -1) @ _smoothing(size), -1, axis)
    if len(shape) == 5:  # the stem looks mostly at the frame it stands for
        values = values * _gauss(np.arange(shape[2]) - shape[2] // 2, 1.0)[:, None, None]
    rows = values.reshape(shape[0], -1)
    if shape[1] > 1 or len(shape) == 5:  # all but depthwise filters
        rows = rows - rows.mean(axis=1, keepdims=True)
    rows = rows * np.sqrt(gain / np.square(rows).sum(axis=1, keepdims=True))
    return rows.reshape(shape).astype(np.float32)


def _smoothing(size: int) -> np.ndarray:
    taps = np.arange(size)
    return _gauss(taps[:, None] - taps, SMOOTHNESS_TAPS)


def _gauss(distance: np.ndarray, spread: float) -> np.ndarray:
    return np.exp(-0.5 * np.square(distance / spread))


def _calibrate(network: nn.Module, rng: np.random.Generator) -> None:
    pictures, _ = draw_mouths(rng, num_clips=_CALIBRATION_CLIPS, num_frames=_CALIBRATION_FRAMES)
    x = torch.from_numpy(normalise(pictures))[:, None].double()
    word = torch.ones(len(x), x.shape[2], 1).double() if network.needs_boundary else None

    # Layers run in order, so each one's input already comes from calibrated layers.
    def measure(layer: nn.Module, inputs: tuple[torch.Tensor]) -> None:
        values = inputs[0].transpose(0, 1).flatten(1)  # (channels, all positions)
        layer.running_mean.copy_(values.mean(dim=1))
        layer.running_var.copy_(values.var(dim=1))

    hooks = [
        layer.register_forward_pre_hook(measure)
        for layer in network.modules()
        if isinstance(layer, _BATCH_NORMS)
    ]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # float64 convolutions on small maps are slower with more, by up to ten times
    try:
        network.double().eval()
        with torch.no_grad():
            embedding = network.frontend(x, max_frames=x.shape[0] * x.shape[2])  # one window: one measurement
            network.temporal(embedding, word)
        network.float()
    finally:
        torch.set_num_threads(threads)
        for hook in hooks:
            hook.remove()


def write_seeded(network: str, out: str | Path, seed: int = 0) -> Path:
    """Writes a seeded weights file, the same bytes for the same network and seed.

    The file says what it is: ``kind``, ``network`` and ``seed`` stand beside ``model_state_dict``. It appears
    under its name only when it is whole.

    Returns:
        `out` as a path.

    Raises:
        ValueError: no network is called `network`, or `seed` is negative.
        OSError: the file cannot be written.
    """
    if seed < 0:
        raise ValueError(f"seed {seed} is negative; give 0 or more")
    reader = build(network)
    seed_weights(reader, seed)
    content = {
        "kind": SEEDED_KIND,
        "network": network,
        "seed": seed,
        "model_state_dict": reader.state_dict(),
    }
    # Written to a file directly, torch.save would put the temporary name into the archive.
    buffer = io.BytesIO()
    torch.save(content, buffer)
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(prefix=f".{out.name}.", dir=out.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(buffer.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp makes files private
        os.replace(temporary, out)
    except BaseException:
        os.unlink(temporary)
        raise
    return out


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.lipreading.seeded",
        description="Write seeded weights: random, never trained, for trying the pipeline out.",
    )
    parser.add_argument(
        "--network", default="lrw_snv05x_tcn1x", choices=NETWORKS, help="default: %(default)s"
    )
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="weights file to write")
    args = parser.parse_args(argv)
    try:
        out = write_seeded(args.network, args.out, args.seed)
    except (OSError, ValueError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 1
    print(f"{out}: {args.network}, seed {args.seed} ({SEEDED_KIND})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
