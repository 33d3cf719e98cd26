"""Score separated voices against the truth: `python calc_metrics.py pred=OUT truth=DIR/audio`.

Exit code 0 when all went well, 2 when the command itself is wrong, 3 when something was wrong with single files.
"""

import sys

import hydra
from omegaconf import DictConfig, OmegaConf

from pipeline.layout import AUDIO_EXTENSIONS, split_name
from pipeline.script_config import check_options, run_script, usage_errors
from src.metrics.evaluate import evaluate
from src.metrics.grouping import Grouping, read_speakers
from src.metrics.pairing import FolderError, pair_files
from src.metrics.report_table import CSV_NAME, JSON_NAME, format_problems, format_table, write_report
from src.metrics.scoring import metric_specs
from src.utils.io_utils import absolute, make_folder

PROBLEMS = 3


def run(config: DictConfig) -> int:
    """Evaluate, print, write; returns the exit code."""
    check_options(config)
    for key, meaning in (("pred", "the separated voices"), ("truth", "the true voices")):
        if config[key] is None:
            raise FolderError(f"{key}= is missing: the folder with s1/ and s2/ of {meaning}")
    pred, truth = absolute(config.pred), absolute(config.truth)
    mix = None if config.mix is None else absolute(config.mix)
    out = pred if config.out is None else absolute(config.out)
    speakers = {} if config.groups is None else read_speakers(absolute(config.groups))
    group_by = config.group_by or ("speaker" if speakers else "file")
    grouping = Grouping(group_by, split_name, speakers)
    pairing = pair_files(pred, truth, mix, extensions=AUDIO_EXTENSIONS)
    make_folder(out, "out")
    evaluation = evaluate(
        pairing,
        metric_specs(narrow_band=config.nb, extended_stoi=config.extended_stoi, only=config.only),
        pit=config.pit,
        jobs=config.jobs,
        grouping=grouping,
        num_resamples=config.num_resamples,
        seed=config.seed,
    )
    write_report(evaluation, out, {**OmegaConf.to_container(config), "group_by": group_by})
    print(format_table(evaluation))
    print(f"\nintervals: bootstrap over {len(set(evaluation.groups))} groups (by {group_by})")
    print(f"written: {out / CSV_NAME}, {out / JSON_NAME}")
    trouble = format_problems(evaluation, verbose=config.verbose)
    if trouble:
        print(trouble, file=sys.stderr)
    return PROBLEMS if evaluation.problems else 0


@hydra.main(version_base=None, config_path="src/configs", config_name="calc_metrics")
def main(config: DictConfig) -> None:
    """Evaluate; what a user can mend is one message, not a traceback."""
    with usage_errors("calc_metrics.py"):
        code = run(config)
    sys.exit(code)


if __name__ == "__main__":
    run_script(main, "calc_metrics.py")
