"""Command line of the embedded corpus: ``python -m pipeline.synthetic OUT``."""

import argparse
import sys
from pathlib import Path

from pipeline.synthetic.corpus import CorpusError, write_corpus


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.synthetic",
        description="Write the embedded corpus of synthetic talking mouths in the course's directory layout.",
    )
    parser.add_argument("out", type=Path, help="directory to make; an existing complete corpus is left alone")
    parser.add_argument("--train", type=int, default=300, help="training mixes (default 300)")
    parser.add_argument("--val", type=int, default=40, help="validation mixes (default 40)")
    parser.add_argument("--test", type=int, default=60, help="test mixes (default 60)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=-1, help="worker processes, -1 for all cores (default)")
    args = parser.parse_args()
    try:
        write_corpus(args.out, args.train, args.val, args.test, seed=args.seed, jobs=args.jobs)
    except CorpusError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
