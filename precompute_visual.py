"""Compute the lip embeddings of a data directory once, into one HDF5 file that training and inference read.

Exit codes: 0 all clips are cached; 3 some failed (listed in <out>.failed.csv); 2 the command cannot run as given;
1 stopped by an error (disk full, file in use, a worker died); 130 interrupted. The same command again goes on.
"""

import argparse
import logging
import os
import sys
from pathlib import Path

from pipeline import extract
from pipeline.cache import CacheError
from pipeline.default_weights import CACHES, PREFERRED, default_weights
from pipeline.layout import LayoutError

NO_WEIGHTS = """--weights is missing, and those of {network} are not in saved/weights.
  published:  python -m pipeline.download {network}
  to try out: python -m pipeline.lipreading.seeded --network {network} --out seeded.pt  (random: not a lip reader)"""


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.replace("\n", " "))
    parser.add_argument("--root", type=Path, required=True, help="data directory, or folder of npz files")
    parser.add_argument("--weights", type=Path, help="of the network (default: saved/weights, else weights/)")
    parser.add_argument("--network", help=f"its name (default: as the file says, or {PREFERRED})")
    parser.add_argument("--out", type=Path, help="cache file (default: saved/cache/<root>.<network>.h5)")
    parser.add_argument(
        "--features", choices=("frontend", "tcn"), help="what is cached (default: by network)"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16"), default="auto")
    parser.add_argument("--batch-frames", type=int, metavar="N", help="frames in a batch across clips")
    parser.add_argument("--workers", type=int, metavar="N", help="decoding processes; 0: none of their own")
    parser.add_argument(
        "--shard", type=extract.parse_shard, default=(1, 1), metavar="i/n", help="part i of n"
    )
    parser.add_argument("--verify", action="store_true", help="compare all contents and checksums")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    options.weights = options.weights or default_weights(options.network)
    if options.weights is None:
        return complain(NO_WEIGHTS.format(network=options.network or PREFERRED), 2)
    # Before PyTorch starts: threads that spin while they wait cost several times over where cores are shared.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Not above: the decoding workers import this script again, and need no PyTorch.
    from pipeline.frontend import FrontEndError, default_features, front_end_for, named_network
    from pipeline.lipreading.weights import WeightsError

    try:
        network = options.network or named_network(options.weights) or PREFERRED
        options.features = options.features or default_features(network)
        place = (options.root, network, options.features, options.shard)
        out = extract.cache_path(CACHES, options.out, *place)
        how = {key: getattr(options, key) for key in ("features", "device", "dtype")}
        front_end = front_end_for(out, network=network, weights=options.weights, **how)
        job = {key: getattr(options, key) for key in ("workers", "batch_frames", "shard", "verify")}
        summary = extract.precompute(options.root, out, front_end, **job)
    except (LayoutError, extract.SettingError, WeightsError, FrontEndError) as error:
        return complain(error, 2)
    except (CacheError, extract.ExtractError) as error:
        return complain(error, 1)
    except KeyboardInterrupt:
        return complain("\ninterrupted: every finished batch is kept; run the same command to go on", 130)
    print(summary)
    if summary.failures:
        return complain(f"{len(summary.failures)} clips failed: see {extract.failures_path(out)}", 3)
    return 0


def complain(message: object, code: int) -> int:
    print(message, file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
