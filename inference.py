"""Separate a directory: `python inference.py root=DIR save_path=OUT [checkpoint=FILE] [cache=FILE] [option=value ...]`.

Exit code 0: all is done. 2: the command cannot be carried out. 3: some recordings failed, or were separated without
lips that are there; they are listed at the end and in OUT/inference.json.
"""

import sys

import hydra
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from pipeline.lipreading.weights import file_digest
from pipeline.script_config import check_options, register_resolvers, run_script, usage_errors
from src.datasets.inference_datasets import inference_datasets
from src.trainer.inferencer import Inferencer
from src.trainer.lip_source import open_lips
from src.trainer.order_check import open_order_check
from src.trainer.separator import choose_checkpoint, load_separator
from src.utils.init_utils import describe_device, resolve_device
from src.utils.io_utils import absolute

INCOMPLETE = 3

register_resolvers()


def run(config: DictConfig) -> bool:
    """Separate, print and write the report; returns whether nothing is missing."""
    check_options(config)
    settings = config.inferencer
    config.root = str(absolute(config.root))
    device = resolve_device(settings.device)
    separator = load_separator(choose_checkpoint(settings.from_pretrained, config.run_dir))
    print(f"checkpoint: {separator.path}\ndevice: {describe_device(device)}", flush=True)
    datasets = inference_datasets(config)
    records = [record for dataset in datasets.values() for record in dataset.index]
    where = {"weights": config.weights, "folders": separator.folders}
    how = {"device": device, "use": settings.lips, "shift_frames": settings.lip_shift_frames}
    lips = open_lips(separator.front_end, records, cache=config.cache, **how, **where)
    check = open_order_check(separator, settings.check_order, weights=config.weights, device=device)
    inferencer = Inferencer(
        model=separator.model,
        datasets=datasets,
        save_path=absolute(settings.save_path),
        lips=lips,
        order_check=check,
        device=device,
        metrics=instantiate(config.metrics.inference),
        output_format=settings.format,
        **{option: settings[option] for option in ("window_s", "overlap_s", "shifts", "batch_size", "jobs")},
    )
    inferencer.run_inference()
    print(*(f"\n{part}: {report}" for part, report in inferencer.reports.items()), sep="\n")
    checkpoint = {"file": str(separator.path), "sha256": file_digest(separator.path)}
    inferencer.write_summary(
        {"checkpoint": checkpoint, "front_end": separator.front_end, "settings": OmegaConf.to_object(config)}
    )
    return all(report.complete for report in inferencer.reports.values())


@hydra.main(version_base=None, config_path="src/configs", config_name="inference")
def main(config: DictConfig) -> None:
    """Separate; what a user can mend is one message, not a traceback."""
    with usage_errors("inference.py"):
        complete = run(config)
    sys.exit(0 if complete else INCOMPLETE)


if __name__ == "__main__":
    run_script(main, "inference.py")
