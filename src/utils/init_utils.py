"""Start of a run: seeds, device, run folder, distributed processes."""

import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from src.utils.io_utils import ROOT_PATH, absolute, make_folder


@dataclass(frozen=True)
class Rank:
    """This process among those that `torchrun` started; 0 of 1 without it."""

    index: int
    world_size: int
    local_index: int

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and logs."""
        return self.index == 0


def init_distributed(device: str) -> Rank:
    """Join the process group where `torchrun` started several processes (NCCL on GPUs, else gloo).

    A GPU becomes the current one of this process: NCCL's collectives of objects know no other.
    """
    variables = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0}
    rank = Rank(*(int(os.environ.get(name, default)) for name, default in variables.items()))
    on_gpu = device.startswith("cuda")
    if on_gpu:
        torch.cuda.set_device(device)
    if rank.world_size > 1 and not dist.is_initialized():
        if on_gpu:
            dist.init_process_group("nccl", device_id=torch.device(device))
        else:
            dist.init_process_group("gloo")
    return rank


def resolve_device(name: str) -> str:
    """`auto` is the GPU where there is one.

    Raises:
        ValueError: a GPU is asked for that is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda"):
        if not torch.cuda.is_available():
            raise ValueError(
                f"device={name}: no CUDA device is available here; use device=cpu or device=auto"
            )
        if name == "cuda":
            name = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
        count = torch.cuda.device_count()
        if (torch.device(name).index or 0) >= count:
            raise ValueError(
                f"device={name}: there are {count} CUDA devices here, counted from 0; start no more processes than that"
            )
    return name


def describe_device(name: str) -> str:
    """A device for a log: what computes, and why it is no GPU where PyTorch was built for one."""
    if name.startswith("cuda"):
        return f"{name}, {torch.cuda.get_device_name(name)}"
    if torch.version.cuda is not None and not torch.cuda.is_available():
        return f"{name} (PyTorch finds no GPU that works with its CUDA {torch.version.cuda})"
    return name


def set_random_seed(seed: int) -> None:
    """Seed torch on every device. Nothing in this project draws from the global generators of numpy or Python."""
    torch.manual_seed(seed)


@contextmanager
def run_folder(settings: Mapping[str, Any], run_name: str, rank: Rank) -> Iterator[Path]:
    """The folder of a run, made or kept, while the context builds what it needs; the first process alone touches it.

    A folder without a checkpoint is no run: it was left by one that could not start. A run that is to be replaced
    stands aside, as `<run_name>.replaced`, until the context has ended well, and comes back where it has not.

    Args:
        settings: `save_dir` (folder of all runs), `override` (an existing run of that name is deleted),
            `resume_from` (it is continued).
        run_name: this run's name.
        rank: this process.

    Raises:
        ValueError: the folder holds a run already and neither was asked for, or it cannot be made; the name is no text.
    """
    if not isinstance(run_name, str):
        raise ValueError(
            f"run_name={run_name}: is taken as a number or as nothing, not as a name: add a letter"
        )
    folder = absolute(settings["save_dir"]) / run_name
    if not rank.is_main:
        yield folder
        return
    aside = folder.with_name(f"{folder.name}.replaced")
    if aside.is_dir() and not _holds_run(folder):  # the one that was to replace it was killed
        _take_place(aside, folder)
    replaces = _holds_run(folder) and not settings["resume_from"]
    if replaces:
        if not settings["override"]:
            raise ValueError(
                f"{folder} holds a run already: continue it with trainer.resume_from=last.pt, replace it with "
                "trainer.override=true, or choose another run_name"
            )
        shutil.rmtree(aside, ignore_errors=True)
        folder.rename(aside)
    make_folder(folder, "trainer.save_dir, run_name")
    try:
        yield folder
    except BaseException:
        if replaces:
            _take_place(aside, folder)
        raise
    if replaces:
        shutil.rmtree(aside, ignore_errors=True)


def _holds_run(folder: Path) -> bool:
    return any(folder.glob("*.pt"))


def _take_place(aside: Path, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    aside.rename(folder)


def save_code_state(folder: Path) -> None:
    """Keep commit and local changes beside the run, where git and a work tree are at hand."""
    for name, command in (("git_commit.txt", ["rev-parse", "HEAD"]), ("git_diff.patch", ["diff", "HEAD"])):
        try:
            done = subprocess.run(
                ["git", *command], cwd=ROOT_PATH, capture_output=True, text=True, check=False
            )
        except FileNotFoundError:  # git is not installed: the run works without
            return
        if done.returncode == 0:
            (folder / name).write_text(done.stdout)
