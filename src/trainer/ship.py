"""Make a trained separator small enough to ship: `python -m src.trainer.ship --checkpoint RUN --out FILE`.

The file holds the weights meant for use in half precision, the configuration that they were trained by, and the
identity of their lip embeddings. `inference.py` and `trainer.init_from` read it like any checkpoint. With
`--mean-with OTHER ...` the weights are the mean of those of several runs that began with one another.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from pipeline.cache import describe_difference
from pipeline.default_weights import SHIPPED
from pipeline.lipreading.weights import file_digest
from src.trainer.checkpoint import (
    SHIPPED_SUFFIX,
    CheckpointError,
    added,
    checkpoint_file,
    load_checkpoint,
    ship_checkpoint,
    start_from,
)
from src.trainer.separator import load_separator
from src.utils.io_utils import ROOT_PATH


def mean_weights(checkpoint: Path, others: Sequence[Path]) -> dict[str, Tensor]:
    """Mean of the weights of several trainings, in the shape of the first one's model.

    Where one training went on from the other, the mean is often better on new data than either (Wortsman et al., "Model
    soups", 2022). What another one does not have counts as a part that changes nothing, where it can begin as such: the
    gate of a round is half open then, and what attention adds is half as much. Tracking is taken as it is.

    Raises:
        CheckpointError: one cannot be read, has other lips, or lacks weights.
    """
    separator = load_separator(checkpoint)
    own = {name: value.clone() for name, value in separator.model.state_dict().items()}
    sets = [own]
    for path in map(checkpoint_file, others):
        content = load_checkpoint(path)
        lips = content.get("front_end") or separator.front_end
        if lips and describe_difference(separator.front_end or lips, lips):
            raise CheckpointError(
                f"{path} was trained on other lips than {separator.path}: no mean makes sense"
            )
        if more := set(content.get("ema") or content["state_dict"]) - set(own):
            raise CheckpointError(
                f"{separator.path} lacks {', '.join(sorted(more))} of {path}: no mean makes sense; name it first"
            )
        separator.model.load_state_dict(own)  # what the other lacks is the first one's, but for what adds it
        lacks = set(start_from(separator.model, path))
        weights = separator.model.state_dict()
        identities = added(separator.model, content.get("ema") or content["state_dict"])
        for name, module in separator.model.named_modules():
            if name in identities or getattr(module, "JOINS_A_MEAN", False):
                lacks -= {f"{name}.{key}" for key in module.state_dict()}
        if lacks := sorted(name for name in lacks if weights[name].any()):
            raise CheckpointError(f"{path} lacks {', '.join(lacks)} of {separator.path}: no mean makes sense")
        sets.append({name: value.clone() for name, value in weights.items()})
    return {
        name: torch.stack([weights[name] for weights in sets]).mean(0) if value.is_floating_point() else value
        for name, value in sets[0].items()
    }


def ship(checkpoint: Path, out: Path, mean_with: Sequence[Path] = ()) -> Path:
    """Write a checkpoint, or the best one of a run, for shipping.

    Args:
        checkpoint: file or folder of a run.
        out: file to write.
        mean_with: others, the mean of whose weights and its own is written.

    Raises:
        CheckpointError: there is none, `out` is no name of a safetensors file, or no mean makes sense.
    """
    if out.suffix != SHIPPED_SUFFIX:
        raise CheckpointError(f"--out {out}: the name must end in {SHIPPED_SUFFIX}")
    content = load_checkpoint(checkpoint_file(checkpoint))
    if mean_with:
        content = {**content, "state_dict": mean_weights(checkpoint, mean_with), "ema": None}
    front_end = content.get("front_end")
    if front_end and SHIPPED.is_file() and file_digest(SHIPPED) == front_end["weights_sha256"]:
        content["front_end"] = {**front_end, "weights": SHIPPED.relative_to(ROOT_PATH).as_posix()}
    elif front_end:
        content["front_end"] = {**front_end, "weights": Path(front_end["weights"]).name}
    out.parent.mkdir(parents=True, exist_ok=True)
    ship_checkpoint(out, content)
    return out


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m src.trainer.ship", description=__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True, help="file, or folder of a run")
    parser.add_argument("--out", type=Path, required=True, help="safetensors file to write")
    parser.add_argument("--mean-with", type=Path, nargs="+", default=[], help="others to take the mean with")
    options = parser.parse_args()
    try:
        out = ship(options.checkpoint, options.out, options.mean_with)
    except CheckpointError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    print(f"{out}: {out.stat().st_size / 1e6:.2f} MB, SHA-256 {file_digest(out)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
