"""From the configuration to loaders, and the order in which their items come."""

from collections.abc import Iterator
from itertools import count
from typing import Any

import torch
import torch.distributed as dist
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import nn
from torch.utils.data import DataLoader, Sampler

from pipeline.cores import usable_cores
from src.datasets.collate import collate_fn


class EpochSampler(Sampler[int]):
    """The order of a dataset's items in one epoch, shared out among processes; it can begin anywhere in it.

    The order follows from ``(seed, epoch)`` alone. Process ``rank`` takes every ``world_size``-th item of it, so that
    the processes' k-th batches together are the k-th stretch of the order.

    Args:
        num_items: length of the dataset.
        shuffle: a new permutation in each epoch; False: in turn.
        seed: the seed of the run.
        even: leave the last items out so that all processes have equally many, as training with gradients averaged
            over processes needs. False: every item is taken exactly once.
        rank, world_size: this process, among how many.

    Attributes:
        start: number of items, over all processes together, that this epoch has had already.
    """

    def __init__(
        self,
        num_items: int,
        *,
        shuffle: bool,
        seed: int = 0,
        even: bool = False,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self._num_items = num_items - num_items % world_size if even else num_items
        self._all_items = num_items
        self._shuffle, self._seed = shuffle, seed
        self.rank, self.world_size = rank, world_size
        self._epoch = 0
        self.start = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch."""
        self._epoch = epoch

    def _positions(self) -> range:
        return range(self.start + self.rank, self._num_items, self.world_size)

    def __len__(self) -> int:
        return len(self._positions())

    def __iter__(self) -> Iterator[int]:
        if self._shuffle:
            # A plain sum would give seed 1 the orders of seed 0, an epoch later.
            generator = torch.Generator().manual_seed(self._seed * 1_000_003 + self._epoch)
            order = torch.randperm(self._all_items, generator=generator).tolist()
        else:
            order = range(self._all_items)
        for position in self._positions():
            yield order[position]


def set_epoch(loader: DataLoader, epoch: int, start: int = 0) -> None:
    """Choose the epoch that the next pass over a loader belongs to.

    Args:
        loader: one of ``get_dataloaders``.
        epoch: decides the order of the items, and what is drawn for each.
        start: number of items, over all processes together, to leave out because they have been used.
    """
    loader.sampler.set_epoch(epoch)
    loader.sampler.start = start
    loader.dataset.set_epoch(epoch)


def inf_loop(loader: DataLoader, start: int = 0) -> Iterator[dict[str, Any]]:
    """Batches without end: one pass over the loader after another, each an epoch of its own.

    Args:
        loader: one of ``get_dataloaders``, with ``drop_last``.
        start: number of batches of this process that were used before, counted from the first of the first pass.
            The next ones are exactly those that would have come.

    Raises:
        ValueError: the loader has no batch.
    """
    set_epoch(loader, 0)
    batches_in_pass = len(loader)
    if batches_in_pass == 0:
        raise ValueError(
            f"a training set of {len(loader.dataset)} items has no full batch of {loader.batch_size}; lower "
            "dataloader.batch_size"
        )
    first_pass, used = divmod(start, batches_in_pass)
    for epoch in count(first_pass):
        set_epoch(loader, epoch, used * loader.batch_size * loader.sampler.world_size)
        yield from loader
        used = 0


def get_dataloaders(
    config: DictConfig, device: str
) -> tuple[dict[str, DataLoader], dict[str, dict[str, nn.Module] | None]]:
    """Instantiate the parts of ``config.datasets`` with a loader each, and the batch transforms.

    A part is a key of ``config.datasets`` whose value has a ``_target_``; a part that is null is left out. The part
    ``train`` is shuffled and its last, incomplete batch dropped; the others come in order and whole.

    Args:
        config: uses ``datasets``, ``dataloader`` (arguments of a DataLoader; at most one worker a core), ``seed`` and
            ``transforms.batch_transforms``.
        device: where batch transforms are to run.

    Returns:
        ({part: loader}, {"train" | "inference": {key: module} or None}).

    Raises:
        ValueError: the training set is smaller than a batch; or what the datasets raise.
    """
    loaders = {
        part: _loader(instantiate(part_config), config.dataloader, part, config.seed)
        for part, part_config in config.datasets.items()
        if OmegaConf.is_dict(part_config) and "_target_" in part_config
    }
    return loaders, _batch_transforms(config, device)


def set_worker_seed(worker_id: int) -> None:
    """Start of a worker process. Seeds need no care, since items bring their own random state."""
    torch.set_num_threads(1)  # workers share the cores among them


def _loader(dataset: Any, config: DictConfig, part: str, seed: int) -> DataLoader:
    rank, world_size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    is_train = part == "train"
    sampler = EpochSampler(
        len(dataset), shuffle=is_train, seed=seed, even=is_train, rank=rank, world_size=world_size
    )
    if is_train and len(sampler) < config.batch_size:
        raise ValueError(
            f"datasets.train has {len(dataset)} items, fewer than one batch of {config.batch_size} for each of "
            f"{world_size} processes; lower dataloader.batch_size"
        )
    # Workers beyond the cores wait for each other, and PyTorch warns of them.
    num_workers = min(config.num_workers, usable_cores())
    make_loader = instantiate(config, num_workers=num_workers, _partial_=True)
    return make_loader(
        dataset,
        sampler=sampler,
        drop_last=is_train,
        collate_fn=collate_fn,
        worker_init_fn=set_worker_seed,
        persistent_workers=num_workers > 0,
        # A loader without its own generator draws from the global one, and so changes what follows in training.
        generator=torch.Generator().manual_seed(seed),
    )


def _batch_transforms(config: DictConfig, device: str) -> dict[str, dict[str, nn.Module] | None]:
    configured = OmegaConf.select(config, "transforms.batch_transforms")
    transforms = instantiate(configured) if configured is not None else {}
    return {
        when: None if by_key is None else {key: module.to(device) for key, module in by_key.items()}
        for when, by_key in transforms.items()
    }
