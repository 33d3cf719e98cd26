"""Gives a trained separator other lips, to train on with them from where it is.

    python -m src.trainer.other_lips --checkpoint A --root DIR --old-cache OLD --cache NEW --out B

The directions of the new lips that move with the voice are fitted as before any training. What reads the old ones is
then multiplied by the linear map that tells these best from the new ones, so that the separator need not learn anew
what lips look like. Both caches are of the same data; OLD is of the lips that A was trained on.

Axes: F video frames, D lip embedding, K directions of the old lips, J of the new ones.
"""

import argparse
import copy
import sys
from collections.abc import Iterable
from pathlib import Path

import torch
from hydra.utils import instantiate
from torch import Tensor, nn

from pipeline.cache import FeatureCache, describe_difference
from src.model.blocks.lip_fusion import LipEncoder
from src.trainer.checkpoint import (
    SHIPPED_SUFFIX,
    CheckpointError,
    checkpoint_file,
    load_checkpoint,
    ship_checkpoint,
    start_from,
)
from src.trainer.separator import load_separator
from src.trainer.synchrony import fit_lips, voices_with_lips

RIDGE = 1e-6


def map_to_old(pairs: Iterable[tuple[Tensor, Tensor, float]]) -> Tensor:
    """The linear map that tells old directions from new ones with the least squared error.

    Args:
        pairs: directions of the old lips (F, K) and of the new ones (F, J) of each voice, and the weight of a frame.

    Returns:
        (K, J), double precision.
    """
    inner, cross = 0, 0
    for old, new, weight in pairs:
        inner, cross = inner + weight * new.T @ new, cross + weight * new.T @ old
    ridge = RIDGE * inner.diagonal().mean() * torch.eye(len(inner), dtype=inner.dtype)
    return torch.linalg.solve(inner + ridge, cross).T


@torch.no_grad()
def read_through(model: nn.Module, old_from_new: Tensor) -> None:
    """Let what reads the lips, and what tells their movement from the voice, go through a map. Shape: (K, J), K = J.

    The matching weighs the product of lips and expected movement: what it expects of the old lips is carried over by
    the transpose, and what it takes for the noise of each by the squares.
    """
    turn = old_from_new.to(model.lips.combine.weight.dtype)
    model.lips.combine.weight.copy_(model.lips.combine.weight @ turn)
    if hasattr(model, "matching"):
        matching = model.matching
        for layer in [matching.sound] + ([matching.more.out] if matching.more is not None else []):
            layer.weight.copy_(torch.einsum("kj,kfl->jfl", turn, layer.weight))
            layer.bias.copy_(turn.T @ layer.bias)
        matching.log_noise.copy_((turn.T.square() @ matching.log_noise.exp()).log())


def other_lips(
    checkpoint: Path, root: Path, old_cache: Path, cache: Path, out: Path, speakers: Path | None = None
) -> Path:
    """Write the separator of a checkpoint, made for the lips of another cache.

    Args:
        checkpoint: file, or folder of a run.
        root: data directory; its part "train" is read.
        old_cache, cache: embeddings of its mouths: of the lips trained on, and of those to train on with.
        out: safetensors file to write, in half precision.
        speakers: see `fit_lips`.

    Raises:
        ValueError: a file cannot be used, the caches do not fit, or the separator has no fixed directions alone.
    """
    if out.suffix != SHIPPED_SUFFIX:
        raise CheckpointError(f"--out {out}: the name must end in {SHIPPED_SUFFIX}")
    if not (root / "audio" / "train").is_dir():
        raise CheckpointError(f"--root {root}: lacks audio/train, whose voices and mouths are compared")
    separator = load_separator(checkpoint)
    lips = getattr(separator.model, "lips", None)
    if not isinstance(lips, LipEncoder) or lips.project is not None:
        raise CheckpointError(
            f"{separator.path}: only lips that are read by fixed directions alone (model.synchronous) can be changed; "
            "train anew"
        )
    old, new = FeatureCache(old_cache), FeatureCache(cache)
    if separator.front_end and (difference := describe_difference(separator.front_end, old.identity)):
        raise CheckpointError(f"--old-cache {old_cache}: not of the lips of {separator.path}: {difference}")
    if set(old) != set(new):
        raise CheckpointError(
            f"--cache {cache} holds other mouths than {old_cache}: make both of the same directory"
        )
    content = load_checkpoint(checkpoint_file(checkpoint))
    config = copy.deepcopy(content["config"])
    config["model"]["visual_dim"] = new.dim
    model = instantiate(config["model"])
    start_from(model, separator.path)
    table = None if speakers is None else str(speakers)
    fit_lips(model, str(root), str(cache), table)
    both = zip(
        *(voices_with_lips(str(root), "train", str(file), table)() for file in (old_cache, cache)),
        strict=True,
    )
    directions = (
        (_directions(lips, a), _directions(model.lips, b), weight) for (_, a, weight), (_, b, _) in both
    )
    read_through(model, map_to_old(directions))
    weights = {"state_dict": model.state_dict(), "ema": None}
    ship_checkpoint(out, {**content, **weights, "config": config, "front_end": dict(new.identity)})
    return out


def _directions(encoder: LipEncoder, visual: Tensor) -> Tensor:
    """Shape: (F, D) -> (F, K), double precision."""
    motion = (visual - visual.mean(dim=0)).double()
    return encoder.fixed(motion[None])[0]


def main() -> int:
    """The command; exit codes: 0 written, 2 it cannot be carried out."""
    parser = argparse.ArgumentParser(prog="python -m src.trainer.other_lips", description=__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True, help="file, or folder of a run")
    parser.add_argument("--root", type=Path, required=True, help="data directory")
    parser.add_argument("--speakers", type=Path, help="CSV file with columns id and speaker")
    parser.add_argument("--old-cache", type=Path, required=True, help="of the lips that it was trained on")
    parser.add_argument("--cache", type=Path, required=True, help="of the lips to train on with")
    parser.add_argument("--out", type=Path, required=True, help="safetensors file to write")
    options = parser.parse_args()
    try:
        out = other_lips(**vars(options))
    except ValueError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    print(f"{out}: trainer.init_from={out} with cache={options.cache} trains on")
    return 0


if __name__ == "__main__":
    sys.exit(main())
