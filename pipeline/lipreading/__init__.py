"""The word-level lip-reading networks of Ma et al., by the names of the published configurations."""

from pipeline.lipreading.network import LipReader
from pipeline.lipreading.registry import NETWORKS, build

__all__ = ["NETWORKS", "LipReader", "build"]
