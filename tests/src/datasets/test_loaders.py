"""Batches, their order, and their repetition: over epochs, workers, processes and interruptions."""

import os
from itertools import islice
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from src.datasets.collate import collate_fn
from src.datasets.data_utils import EpochSampler, get_dataloaders, inf_loop, set_epoch

CONFIGS = Path(__file__).parents[3] / "src" / "configs"


def item(num_samples: int, name: str, **more) -> dict:
    return {
        "mix": torch.ones(num_samples),
        "sources_mask": torch.tensor([True, True]),
        "visual_mask": torch.tensor([True, False]),
        "visual": torch.ones(2, -(-num_samples // 640), 3),
        "utt_id": name,
        "ids": (name, name),
        **more,
    }


def config_of(directory, num_workers=0, batch_size=4, **train):
    part = {
        "_target_": "src.datasets.dynamic_mixing.DynamicMixingDataset",
        "root": str(directory.root),
        "cache": str(directory.cache),
        "segment_s": 0.2,
        "num_samples": 18,
        "seed": 5,
        **train,
    }
    loader = {"_target_": "torch.utils.data.DataLoader", "batch_size": batch_size, "num_workers": num_workers}
    return OmegaConf.create(
        {
            "seed": 5,
            "datasets": {"root": str(directory.root), "train": part, "val": None},
            "dataloader": loader,
        }
    )


def train_loader(directory, **options):
    return get_dataloaders(config_of(directory, **options), "cpu")[0]["train"]


def signature(batch) -> tuple:
    return tuple(batch["utt_id"]), tuple(batch["mix"].square().sum(1).tolist())


def test_collate_pads_to_the_longest():
    batch = collate_fn(
        [item(1280, "a", sources=torch.ones(2, 1280)), item(640, "b", sources=torch.ones(2, 640))]
    )
    assert batch["lengths"].tolist() == [1280, 640]
    assert batch["mix"].sum(1).tolist() == [1280, 640]
    assert batch["mix"][1, 640:].abs().sum() == 0
    assert batch["sources"].sum(2).tolist() == [[1280, 1280], [640, 640]]
    assert batch["visual"].shape == (2, 2, 2, 3) and batch["visual"][1, :, 1].abs().sum() == 0
    assert batch["utt_id"] == ["a", "b"] and batch["ids"] == [("a", "a"), ("b", "b")]


def test_collate_keeps_apart_what_has_truth():
    none = torch.tensor([False, False])
    batch = collate_fn([item(640, "a", sources=torch.ones(2, 640)), item(640, "b", sources_mask=none)])
    assert batch["sources_mask"].tolist() == [[True, True], [False, False]]
    assert batch["sources"][1].abs().sum() == 0
    assert "sources" not in collate_fn([item(640, "b", sources_mask=none)])


@pytest.mark.parametrize("num_items", [12, 13, 17])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_processes_share_an_epoch_without_overlap(num_items, world_size):
    def shares(even):
        samplers = [
            EpochSampler(num_items, shuffle=True, even=even, rank=rank, world_size=world_size)
            for rank in range(world_size)
        ]
        assert [len(list(sampler)) for sampler in samplers] == [len(sampler) for sampler in samplers]
        return [list(sampler) for sampler in samplers]

    everything = [number for share in shares(even=False) for number in share]
    assert sorted(everything) == list(range(num_items))
    even = shares(even=True)
    assert len({len(share) for share in even}) == 1
    assert len({number for share in even for number in share}) == num_items // world_size * world_size


def test_the_order_changes_with_epoch_and_seed_only():
    def order(seed, epoch):
        sampler = EpochSampler(50, shuffle=True, seed=seed)
        sampler.set_epoch(epoch)
        return tuple(sampler)

    state = torch.get_rng_state()
    assert order(0, 0) == order(0, 0)
    assert len({order(0, 0), order(0, 1), order(1, 0), order(1, 1)}) == 4
    assert torch.equal(torch.get_rng_state(), state)
    assert list(EpochSampler(5, shuffle=False)) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_pass_can_begin_anywhere(world_size):
    for rank in range(world_size):
        sampler = EpochSampler(20, shuffle=True, even=True, rank=rank, world_size=world_size)
        whole = list(sampler)
        sampler.start = 3 * 2 * world_size  # three batches of two
        assert list(sampler) == whole[6:]


def test_train_drops_the_incomplete_batch_and_is_refused_when_too_small(voices_directory):
    loader = train_loader(voices_directory)
    assert [len(batch["utt_id"]) for batch in loader] == [4] * 4
    with pytest.raises(ValueError, match=r"18 items, fewer than one batch of 19"):
        train_loader(voices_directory, batch_size=19)


def test_batches_are_the_same_whatever_the_number_of_workers(voices_directory):
    """Epoch by epoch, with workers that live on; they must see the epoch change."""
    alone, many = train_loader(voices_directory), train_loader(voices_directory, num_workers=2)
    seen = []
    for epoch in range(3):
        for loader in (alone, many):
            set_epoch(loader, epoch)
        expected = [signature(batch) for batch in alone]
        assert [signature(batch) for batch in many] == expected
        seen += expected
    assert len(set(seen)) == len(seen)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system has no core affinity")
def test_workers_are_at_most_the_cores_of_the_process(voices_directory, recwarn):
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        loader = train_loader(voices_directory, num_workers=4)
        assert [signature(batch) for batch in loader] == [
            signature(batch) for batch in train_loader(voices_directory)
        ]
    finally:
        os.sched_setaffinity(0, cores)
    assert loader.num_workers == 1
    assert not [warning for warning in recwarn if "worker" in str(warning.message)]


def test_spawned_workers_give_the_same_batches(voices_directory):
    config = config_of(voices_directory, num_workers=1, preload=True)
    config.dataloader.multiprocessing_context = "spawn"
    spawned = get_dataloaders(config, "cpu")[0]["train"]
    alone = train_loader(voices_directory, preload=True)
    for epoch in range(2):
        for loader in (alone, spawned):
            set_epoch(loader, epoch)
        assert [signature(batch) for batch in spawned] == [signature(batch) for batch in alone]


def test_loading_leaves_the_global_generator(voices_directory):
    state = torch.get_rng_state()
    list(train_loader(voices_directory, num_workers=1))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("start", [0, 1, 3, 4, 6, 9])
def test_an_endless_loop_resumes_where_it_stopped(voices_directory, start):
    """Four batches make a pass: the starts lie within the first, second and third."""
    whole = [signature(batch) for batch in islice(inf_loop(train_loader(voices_directory)), 12)]
    assert len(set(whole)) == 12
    resumed = inf_loop(train_loader(voices_directory), start=start)
    assert [signature(batch) for batch in islice(resumed, 12 - start)] == whole[start:]


def test_parts_that_are_null_are_left_out_and_evaluation_is_whole_and_in_order(voices_directory):
    config = config_of(voices_directory)
    assert set(get_dataloaders(config, "cpu")[0]) == {"train"}
    config.datasets.val = {
        "_target_": "src.datasets.avss.AVSSDataset",
        "root": str(voices_directory.root),
        "part": "train",
        "cache": str(voices_directory.cache),
    }
    loaders, _ = get_dataloaders(config, "cpu")
    names = [name for batch in loaders["val"] for name in batch["utt_id"]]
    assert names == ["01_02", "01_03", "02_07", "03_04", "04_08", "05_06"]


def test_batch_transforms_are_instantiated(voices_directory):
    config = config_of(voices_directory)
    config.transforms = {
        "batch_transforms": {"train": {"mix": {"_target_": "torch.nn.Tanh"}}, "inference": None}
    }
    _, transforms = get_dataloaders(config, "cpu")
    assert transforms["inference"] is None
    assert transforms["train"]["mix"](torch.zeros(2)).tolist() == [0, 0]


def shipped(*overrides: str):
    with initialize_config_dir(str(CONFIGS), version_base=None):
        return compose(overrides=["+dataloader=default", "dataloader.num_workers=0", "+seed=1", *overrides])


@pytest.mark.parametrize("transforms", ["none", "augment"])
@pytest.mark.parametrize("datasets", ["dynamic_mixing", "avss"])
def test_the_shipped_configurations_give_batches(voices_directory, datasets, transforms):
    (voices_directory.root / "audio/val").symlink_to(voices_directory.root / "audio/train")
    config = shipped(
        f"+datasets={datasets}",
        f"+transforms={transforms}",
        f"datasets.root={voices_directory.root}",
        f"+cache={voices_directory.cache}",
        "dataloader.batch_size=2",
    )
    loaders, _ = get_dataloaders(config, "cpu")
    assert set(loaders) == {"train", "val"}
    batch = next(iter(loaders["train"]))
    assert batch["mix"].isfinite().all()
    assert batch["visual"].shape == (2, 2, batch["mix"].shape[1] // 640, 4)
    assert len(next(iter(loaders["val"]))["utt_id"]) == 2


def test_the_shipped_configuration_of_a_custom_directory(directory):
    directory.mixture("1_2")
    loaders, _ = get_dataloaders(
        shipped("+datasets=custom_dir", f"+root={directory.root}", "+part=null", "+cache=null"), "cpu"
    )
    assert [batch["utt_id"] for batch in loaders["custom"]] == [["1_2"]]
