"""Mean of two lip encoders of which one was trained on from the other.

    python -m pipeline.synchrony.mean --run RUN --other FOLDER --share 0.75 --out OUT

It is often better on new faces than either (Wortsman et al., "Model soups", 2022).
"""

import argparse
import sys
from pathlib import Path

from pipeline.lipreading.weights import WeightsError
from pipeline.synchrony.halves import LIP_FILE, SOUND_FILE, load_halves, made_as, save_halves


def mean(run: Path, other: Path, share: float, out: Path) -> None:
    """Write both halves of the mean, with what the first encoder's training wrote of itself.

    Args:
        run, other: folders with both halves.
        share: of the first one, 0 to 1.
        out: folder to write to.

    Raises:
        ValueError: there is no such share, a file cannot be read, or the two are not of one network.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"--share {share}: must be 0 to 1")
    halves, others = load_halves(run), load_halves(other)
    if (first := halves[0].name) != (second := others[0].name):
        raise WeightsError(f"{run} is of the network {first}, {other} of {second}: no mean makes sense")
    means = []
    for half, of_other in zip(halves, (half.state_dict() for half in others)):
        means.append(
            {
                key: share * value + (1 - share) * of_other[key] if value.is_floating_point() else value
                for key, value in half.state_dict().items()
            }
        )
    out.mkdir(parents=True, exist_ok=True)
    save_halves(out, *means, made_as(run / LIP_FILE))


def main(arguments: list[str] | None = None) -> int:
    """The command; exit codes: 0 written, 2 it cannot be carried out."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.synchrony.mean", description=__doc__)
    parser.add_argument("--run", type=Path, required=True, help="folder of the encoder that was trained on")
    parser.add_argument("--other", type=Path, required=True, help="folder of the one that it began with")
    parser.add_argument("--share", type=float, default=0.5, help="of the first one; default 0.5")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    options = parser.parse_args(arguments)
    try:
        mean(options.run, options.other, options.share, options.out)
    except ValueError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    print(f"{options.out}: {LIP_FILE} and {SOUND_FILE} of the mean")
    return 0


if __name__ == "__main__":
    sys.exit(main())
