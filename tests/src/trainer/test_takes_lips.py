"""One rule says whether a model takes lips: its configuration has a `visual_dim` above zero."""

from pathlib import Path

import hydra
import pytest
import torch
from omegaconf import OmegaConf

from pipeline.script_config import register_resolvers
from src.datasets.preparation import find_cache, prepare_data
from src.trainer.checkpoint import save_checkpoint
from src.trainer.separator import load_separator
from src.utils.init_utils import Rank

CONFIGS = Path(__file__).resolve().parents[3] / "src/configs"
FRONT_END = {"dim": 8}


@pytest.mark.parametrize("choice", sorted(path.stem for path in (CONFIGS / "model").glob("*.yaml")))
def test_preparation_and_checkpoint_agree(choice, tmp_path):
    register_resolvers()
    with hydra.initialize_config_dir(version_base=None, config_dir=str(CONFIGS)):
        config = hydra.compose("train", overrides=[f"model={choice}", "datasets.root=data", "visual_dim=8"])
    model = hydra.utils.instantiate(config.model)
    save_checkpoint(
        tmp_path / "best.pt",
        {
            "state_dict": model.state_dict(),
            "config": OmegaConf.to_container(config, resolve=True),
            "front_end": FRONT_END,
        },
    )
    with torch.no_grad():
        uses_lips = bool(model(torch.randn(1, 1280), torch.randn(1, 2, 2, 8))["visual_mask"].any())
    assert (load_separator(tmp_path).front_end is not None) == uses_lips
    single = Rank(index=0, world_size=1, local_index=0)
    if uses_lips:
        with pytest.raises(ValueError, match="cache=FILE"):
            prepare_data(config, single)
    else:
        assert prepare_data(config, single) is None


def test_a_cache_without_a_name_is_found_by_the_directory(tmp_path, monkeypatch):
    monkeypatch.setattr("src.datasets.preparation.CACHES", tmp_path)
    with pytest.raises(ValueError, match=r"precompute_visual\.py --root .*data"):
        find_cache("some/data")
    (tmp_path / "data.sync_light.tcn.h5").touch()
    (tmp_path / "data.sync_light.tcn.shard-1-of-2.h5").touch()
    (tmp_path / "database.sync_light.tcn.h5").touch()
    assert find_cache("some/data") == tmp_path / "data.sync_light.tcn.h5"
    (tmp_path / "data.lrw_resnet18_dctcn.h5").touch()
    with pytest.raises(ValueError, match=r"2 caches belong to some/data: choose one with cache=FILE"):
        find_cache("some/data")
