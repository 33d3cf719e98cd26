"""Separators, one file each; `blocks/` holds the parts they share, which know no configuration.

Families: band-split lip-cued separators live here now (`band_separator`). Separators cued by an enrolment
utterance instead of lips (VoiceFilter, SpEx+) will be further files beside it.
"""

from src.model.band_separator import BandSeparator
from src.model.ctcnet import CtcNet
from src.model.rtfs_net import RtfsNet

__all__ = ["BandSeparator", "CtcNet", "RtfsNet"]
