"""Which device a process takes, and that it is its own; of GPUs only what asks for them is seen here."""

import pytest
import torch

from src.utils.init_utils import Rank, describe_device, init_distributed, resolve_device, run_folder


@pytest.fixture
def two_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda name: f"name of {name}")


def test_each_process_takes_the_gpu_of_its_number_and_makes_it_current(two_gpus, monkeypatch):
    current, groups = [], []
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    monkeypatch.setattr("torch.distributed.init_process_group", lambda *args, **kw: groups.append((args, kw)))
    for name, value in {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    device = resolve_device("auto")
    rank = init_distributed(device)
    assert device == "cuda:1" and current == ["cuda:1"]
    assert groups == [(("nccl",), {"device_id": torch.device("cuda:1")})]
    assert (rank.index, rank.local_index, rank.is_main) == (5, 1, False)


@pytest.mark.parametrize(("name", "local_rank"), [("auto", "2"), ("cuda", "2"), ("cuda:2", "0")])
def test_a_gpu_that_is_not_there_is_refused(two_gpus, monkeypatch, name, local_rank):
    monkeypatch.setenv("LOCAL_RANK", local_rank)
    with pytest.raises(ValueError, match=r"device=cuda:2: there are 2 CUDA devices"):
        resolve_device(name)


def test_a_run_that_was_moved_aside_and_left_there_comes_back(tmp_path):
    """As after a kill while the run that was to replace it began."""
    settings = {"save_dir": tmp_path, "override": False, "resume_from": "last.pt"}
    (tmp_path / "run.replaced").mkdir()
    (tmp_path / "run.replaced/last.pt").touch()
    (tmp_path / "run").mkdir()
    (tmp_path / "run/info.log").touch()
    with run_folder(settings, "run", Rank(0, 1, 0)) as folder:
        assert [path.name for path in folder.iterdir()] == ["last.pt"]
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_start_that_fails_touches_no_run_but_the_one_it_was_to_replace(tmp_path):
    """What lies aside from before does not take the place of a run that is resumed in vain."""
    for name in ("run", "run.replaced"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.pt").touch()
    settings = {"save_dir": tmp_path, "override": True, "resume_from": "last.pt"}
    with pytest.raises(KeyError), run_folder(settings, "run", Rank(0, 1, 0)):
        raise KeyError
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["run.pt"]


def test_a_log_tells_why_a_gpu_is_not_used(two_gpus, monkeypatch):
    assert describe_device("cuda:1") == "cuda:1, name of cuda:1"
    assert describe_device("cpu") == "cpu"  # it was asked for
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert "no GPU that works with its CUDA 13.0" in describe_device("cpu")
    monkeypatch.setattr(torch.version, "cuda", None)
    assert describe_device("cpu") == "cpu"
