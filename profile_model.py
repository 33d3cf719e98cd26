"""What separators cost: `python profile_model.py [models=[NAME,...]] [checkpoints=[FILE,...]] [option=value ...]`.

Parameters, MACs, size on disk, memory and time of one inference and one training step, for the separator, the lip
reader and both. Exit code 2: the command cannot be carried out.
"""

import sys

import hydra
import torch
from omegaconf import DictConfig, OmegaConf

from pipeline.script_config import check_options, register_resolvers, run_script, usage_errors
from src.trainer.cost.cost_table import format_markdown, write_report
from src.trainer.cost.pareto import PICTURE_NAME, draw_pareto, read_scores, scored_models
from src.trainer.cost.profile import profile_models
from src.trainer.cost.subjects import find_subjects
from src.utils.init_utils import resolve_device
from src.utils.io_utils import absolute, make_folder

MEASUREMENT = ("seconds", "batch_size", "warmup", "repeats", "memory", "length_sweep", "batch_sweep")

register_resolvers()


def run(config: DictConfig) -> None:
    """Profile, print, write."""
    check_options(config)
    settings = OmegaConf.to_container(config, resolve=True)
    scores = {} if settings["scores"] is None else read_scores(absolute(settings["scores"]))
    out = absolute(settings["out"])
    make_folder(out, "out")
    device = resolve_device(settings["device"])
    devices = ["cpu", device] if settings["device"] == "auto" and device != "cpu" else [device]
    if settings["threads"] is not None:
        torch.set_num_threads(settings["threads"])
    subjects = find_subjects(
        **{key: settings[key] for key in ("models", "checkpoints", "lip_reader", "overrides")}
    )
    report = profile_models(subjects, devices=devices, **{key: settings[key] for key in MEASUREMENT})
    write_report(report, out, settings)
    print(format_markdown(report))
    print(f"written: {out}")
    points = scored_models(report, scores)
    if points:
        draw_pareto(points, report, out / PICTURE_NAME)
        unknown = [subject.name for subject in subjects if subject.name not in scores]
        print(f"picture: {out / PICTURE_NAME}" + (f"; no score of {', '.join(unknown)}" if unknown else ""))
    else:
        print(
            "no picture of SI-SNRi over cost: pass scores=FILE with model,si_snri of these models",
            file=sys.stderr,
        )


@hydra.main(version_base=None, config_path="src/configs", config_name="profile")
def main(config: DictConfig) -> None:
    """Run; what a user can mend is one line, not a traceback."""
    with usage_errors("profile_model.py"):
        run(config)


if __name__ == "__main__":
    run_script(main, "profile_model.py")
