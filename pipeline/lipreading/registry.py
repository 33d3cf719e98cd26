"""The networks by name: the published configurations, and the light one of ours."""

import difflib
from dataclasses import dataclass
from typing import Literal

from torch import nn

from pipeline.lipreading.activation import make_activation
from pipeline.lipreading.dense_tcn import DenseTCN
from pipeline.lipreading.light import LightTemporal, LightTrunk
from pipeline.lipreading.multiscale_tcn import MultiScaleTCN
from pipeline.lipreading.network import NUM_WORDS, LipReader, TemporalClassifier
from pipeline.lipreading.resnet import ResNet18Trunk
from pipeline.lipreading.shufflenet import ShuffleNetV2Trunk
from pipeline.lipreading.stem import Stem
from pipeline.lipreading.tcn import TemporalConvNet


@dataclass(frozen=True)
class NetworkConfig:
    """One configuration.

    Attributes:
        trunk: the per-frame network.
        activation: of the stem and (but for the dense TCN's first transition) of the temporal network.
        temporal: which temporal network.
        temporal_width: its channels; the dense TCN's are fixed.
        words: whether it reads words; if not, it was trained to match mouths with voices.
        boundary: the temporal network gets the word-boundary flag as one more channel.
    """

    trunk: Literal["resnet18", "shufflenet_0.5x", "shufflenet_1x", "light"]
    activation: Literal["swish", "prelu", "relu"]
    temporal: Literal["dense", "multiscale", "separable_multiscale", "single", "light"]
    temporal_width: int
    boundary: bool = False
    words: bool = True


NETWORKS: dict[str, NetworkConfig] = {
    "lrw_resnet18_dctcn": NetworkConfig("resnet18", "swish", "dense", DenseTCN.out_channels),
    "lrw_resnet18_dctcn_boundary": NetworkConfig("resnet18", "swish", "dense", DenseTCN.out_channels, True),
    "lrw_resnet18_mstcn": NetworkConfig("resnet18", "swish", "multiscale", 768),
    "lrw_snv1x_tcn1x": NetworkConfig("shufflenet_1x", "prelu", "single", 256),
    "lrw_snv1x_tcn2x": NetworkConfig("shufflenet_1x", "prelu", "single", 512),
    "lrw_snv1x_dsmstcn3x": NetworkConfig("shufflenet_1x", "relu", "separable_multiscale", 768),
    "lrw_snv05x_tcn1x": NetworkConfig("shufflenet_0.5x", "prelu", "single", 256),
    "lrw_snv05x_tcn2x": NetworkConfig("shufflenet_0.5x", "prelu", "single", 512),
    "sync_light": NetworkConfig("light", "relu", "light", 128, words=False),
}


def build(name: str) -> LipReader:
    """Builds a lip reader with untrained weights, in training mode (as any new module).

    Raises:
        ValueError: no network has this name.
    """
    if name not in NETWORKS:
        near = difflib.get_close_matches(name, NETWORKS, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise ValueError(f"lip-reading network {name!r} is unknown{hint}; known are: {', '.join(NETWORKS)}")
    config = NETWORKS[name]
    frame_trunk = _frame_trunk(config)
    activation = make_activation(config.activation, frame_trunk.in_channels)
    trunk_key = "mb_ms_tcn" if config.temporal.endswith("multiscale") else "tcn_trunk"
    return LipReader(
        name=name,
        stem=Stem(channels=frame_trunk.in_channels, activation=activation, light=config.trunk == "light"),
        frame_trunk=frame_trunk,
        temporal=TemporalClassifier(
            _temporal_trunk(config, frame_trunk.out_channels + config.boundary),
            trunk_key=trunk_key,
            num_words=NUM_WORDS if config.words else 0,
        ),
        needs_boundary=config.boundary,
    )


def _frame_trunk(config: NetworkConfig) -> nn.Module:
    if config.trunk == "resnet18":
        return ResNet18Trunk()
    if config.trunk == "light":
        return LightTrunk()
    return ShuffleNetV2Trunk(width=0.5 if config.trunk == "shufflenet_0.5x" else 1.0)


def _temporal_trunk(config: NetworkConfig, in_channels: int) -> nn.Module:
    if config.temporal == "dense":
        return DenseTCN(in_channels)
    if config.temporal == "light":
        return LightTemporal(in_channels, width=config.temporal_width)
    shape = {"width": config.temporal_width, "activation": config.activation}
    if config.temporal == "single":
        return TemporalConvNet(in_channels, **shape)
    return MultiScaleTCN(in_channels, **shape, separable=config.temporal == "separable_multiscale")
