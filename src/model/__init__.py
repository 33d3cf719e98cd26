"""Separators, one file each; `blocks/` holds the parts they share, which know no configuration.

Families: band-split lip-cued separators live here now (`band_separator`). Separators cued by an enrolment
utterance instead of lips (VoiceFilter, SpEx+) will be further files beside it.
"""

from src.model.band_separator import BandSeparator
from src.model.conv_tasnet import AVConvTasNet, ConvTasNet
from src.model.ctcnet import CtcNet
from src.model.danet import DANet
from src.model.dprnn_tasnet import DPRNNTasNet
from src.model.rtfs_net import RtfsNet
from src.model.tasnet import TasNet

__all__ = [
    "AVConvTasNet",
    "BandSeparator",
    "ConvTasNet",
    "CtcNet",
    "DANet",
    "DPRNNTasNet",
    "RtfsNet",
    "TasNet",
]
