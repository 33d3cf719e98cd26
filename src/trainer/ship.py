"""Make a trained separator small enough to ship: `python -m src.trainer.ship --checkpoint RUN --out FILE`.

The file holds the weights meant for use in half precision, the configuration that they were trained by, and the
identity of their lip embeddings. `inference.py` and `trainer.init_from` read it like any checkpoint.
"""

import argparse
import sys
from pathlib import Path

from pipeline.default_weights import SHIPPED
from pipeline.lipreading.weights import file_digest
from src.trainer.checkpoint import (
    SHIPPED_SUFFIX,
    CheckpointError,
    find_checkpoint,
    load_checkpoint,
    ship_checkpoint,
)
from src.utils.io_utils import ROOT_PATH


def ship(checkpoint: Path, out: Path) -> Path:
    """Write a checkpoint, or the best one of a run, for shipping.

    Args:
        checkpoint: file or folder of a run.
        out: file to write.

    Raises:
        CheckpointError: there is none, or `out` is no name of a safetensors file.
    """
    if out.suffix != SHIPPED_SUFFIX:
        raise CheckpointError(f"--out {out}: the name must end in {SHIPPED_SUFFIX}")
    content = load_checkpoint(find_checkpoint(checkpoint) if checkpoint.is_dir() else checkpoint)
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
    options = parser.parse_args()
    try:
        out = ship(options.checkpoint, options.out)
    except CheckpointError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    print(f"{out}: {out.stat().st_size / 1e6:.2f} MB, SHA-256 {file_digest(out)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
