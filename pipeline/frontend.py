"""Mouth crops -> lip embeddings, the same way for the offline cache and for features on the fly.

The lip reader is rearranged for inference, with unchanged results: batch norms are folded into the
convolutions, and the stem's 3D convolution becomes a 2D one over the five frames around each frame. So frames of
any number of clips run side by side, a frame's neighbours beyond the ends of its own clip being zeros, and no
padding is computed. On two CPU cores this is three times as fast as the plain network.

Axes: N frames of all clips, T frames of one clip, D embedding, C channels of the temporal trunk.
"""

import copy
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from pipeline.bfloat16 import has_bfloat16
from pipeline.cache import FeatureCache, describe_difference
from pipeline.cores import usable_cores
from pipeline.lipreading import NETWORKS, LipReader
from pipeline.lipreading.resnet import ResNet18Trunk
from pipeline.lipreading.stem import STEM_CONTEXT_FRAMES
from pipeline.lipreading.weights import WeightsError, file_digest, load_network, network_of, weights_kind
from pipeline.mouths import MEAN, PREPROCESSING_VERSION, STD, iter_mouth

FEATURES = ("frontend", "tcn")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# Frames in flight: what a core's cache likes, and what keeps a GPU busy (0.3 MB of activations a frame).
WINDOW_CPU, WINDOW_CUDA = 64, 1024
TEMPORAL_WINDOW = 4096
# Memory formats exist for 4 axes only; convolutions without them are several times slower on CPUs.
_LAYOUT = torch.channels_last


class FrontEndError(ValueError):
    """The front-end cannot run as asked; the message names the setting and the remedy."""


class FrontEnd:
    """A frozen lip reader that turns frames into embeddings.

    It is not a module, so no ``train()`` of a model it belongs to can reach its batch norms.

    Attributes:
        identity: what the embeddings are computed with, as a cache records it.
        dim: values in an embedding: D of the front-end, or C of the temporal trunk.
        batch_frames: a sensible number of frames for one call, for the device at hand.
        decoding_workers: processes that feed it without taking the cores it computes on.
    """

    def __init__(
        self,
        *,
        network: str,
        weights: str | Path,
        features: str = "frontend",
        device: str = "auto",
        dtype: str = "auto",
    ) -> None:
        """Load the weights.

        Args:
            network: name in ``pipeline.lipreading.NETWORKS``.
            weights: checkpoint of that network.
            features: ``frontend`` for the embedding of each frame, ``tcn`` for the temporal trunk's output.
            device: ``auto`` takes a GPU where there is one.
            dtype: precision of the computation; ``auto`` is bfloat16 for ResNets on hardware that has it.

        Raises:
            FrontEndError: features, device or dtype are unknown or unavailable.
            ValueError: the network is unknown, or the weights do not fit.
        """
        if features not in FEATURES:
            raise FrontEndError(f"features={features!r} is unknown; choose {' or '.join(FEATURES)}")
        if network not in NETWORKS:
            raise FrontEndError(f"network={network!r} is unknown; choose one of {', '.join(NETWORKS)}")
        self.device = _choose_device(device)
        if features == "tcn" and NETWORKS[network].boundary:
            raise FrontEndError(
                f"features='tcn' of {network} need the word's boundaries, which speech to be separated does not "
                "have; use features='frontend', or a network without boundaries"
            )
        reader = load_network(network, weights)
        dtype = _choose_dtype(dtype, self.device, reader, features)
        self.dim: int = reader.trunk_dim if features == "tcn" else reader.embedding_dim
        self.identity: dict[str, Any] = {
            "network": network,
            "weights": str(weights),
            "weights_sha256": file_digest(weights),
            "weights_kind": weights_kind(weights),
            "preprocessing_version": PREPROCESSING_VERSION,
            "features": features,
            "dim": self.dim,
            "dtype": dtype,
        }
        self._dtype = DTYPES[dtype]
        self._frame_network = _FrameNetwork(reader).to(self.device, self._dtype).eval().requires_grad_(False)
        # The temporal trunk is a small part of the work and stays in full precision.
        self._reader = reader.to(self.device) if features == "tcn" else None
        on_gpu = self.device.type == "cuda"
        self._window = WINDOW_CUDA if on_gpu else WINDOW_CPU
        self.batch_frames = 8192 if on_gpu else 512
        cores = usable_cores()
        self.decoding_workers = min(16, cores) if on_gpu else max(1, cores // 8)

    def embed_clips(self, clips: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Embed clips of any lengths together; each comes out as it would alone.

        Args:
            clips: ``(T_i, 88, 88)`` intensities in 0..255, as ``read_mouth`` returns them.

        Returns:
            ``(T_i, D)`` float16 for each.
        """
        if not clips:
            return []
        lengths = [len(clip) for clip in clips]
        embeddings = self._embed_frames(np.concatenate(clips), _neighbours(lengths)).split(lengths)
        if self._reader is not None:
            embeddings = self._run_temporal(embeddings)
        return [embedding.to(torch.float16).cpu().numpy() for embedding in embeddings]

    def embed_file(self, path: str | Path, chunk_frames: int = 1024) -> np.ndarray:
        """Embed one mouth file, streaming it, so that an hour of video never lies in memory.

        Returns:
            ``(T, D)`` float16.

        Raises:
            MouthError: the file cannot be used.
        """
        pieces = list(self._embed_stream(iter_mouth(path, chunk_frames)))
        if self._reader is not None:
            pieces = self._run_temporal([torch.cat(pieces)])
        return torch.cat([piece.to(torch.float16) for piece in pieces]).cpu().numpy()

    def _embed_stream(self, chunks: Iterator[np.ndarray]) -> Iterator[Tensor]:
        """Embed consecutive chunks of one clip, each with the frames before and after it as context."""
        context = STEM_CONTEXT_FRAMES
        held = next(chunks)  # frames not embedded yet, after up to `done` frames of context on the left
        done = 0
        for chunk in chunks:
            held = np.concatenate([held, chunk])
            stop = len(held) - context
            if stop > done:
                yield self._embed_frames(held, _neighbours([len(held)])[done:stop])
                cut = max(0, stop - context)
                held, done = held[cut:], stop - cut
        yield self._embed_frames(held, _neighbours([len(held)])[done:])

    @torch.inference_mode()
    def _embed_frames(self, frames: np.ndarray, neighbours: Tensor) -> Tensor:
        """Embed the frames that ``neighbours`` (M, 5) has a row for, out of ``frames`` (N, 88, 88): (M, D)."""
        pictures = torch.from_numpy(frames).to(self.device, torch.float32).div(255).sub_(MEAN).div_(STD)
        # What lies beyond a clip's ends is zero after normalising, not black.
        pictures = torch.cat([pictures, pictures.new_zeros(1, *pictures.shape[1:])]).to(self._dtype)
        neighbours = neighbours.to(self.device)
        while True:
            try:
                pieces = [self._frame_network(pictures[rows]) for rows in neighbours.split(self._window)]
                return torch.cat(pieces).float()
            except torch.cuda.OutOfMemoryError as error:
                if self._window <= WINDOW_CPU:
                    raise FrontEndError(
                        f"{self.device} has no memory left for {self._window} frames; free it, or use --device cpu"
                    ) from error
                self._window //= 2
                torch.cuda.empty_cache()

    @torch.inference_mode()
    def _run_temporal(self, embeddings: Sequence[Tensor]) -> list[Tensor]:
        """Run the temporal trunk on clips of equal length together: padding would change a clip's result."""
        by_length: dict[int, list[int]] = {}
        for place, embedding in enumerate(embeddings):
            by_length.setdefault(len(embedding), []).append(place)
        results: list[Tensor] = list(embeddings)
        for length, places in by_length.items():
            together = max(1, TEMPORAL_WINDOW // length)
            for start in range(0, len(places), together):
                group = places[start : start + together]
                output = self._temporal_windows(torch.stack([embeddings[place] for place in group]))
                for place, result in zip(group, output):
                    results[place] = result.T
        return results

    def _temporal_windows(self, embeddings: Tensor) -> Tensor:
        """The temporal trunk, in windows with its exact context where that is finite: (B, T, D) -> (B, C, T)."""
        frames, context = embeddings.shape[1], self._reader.context_frames
        if context is None or frames <= TEMPORAL_WINDOW:
            return self._reader.temporal(embeddings)
        pieces = []
        for start in range(0, frames, TEMPORAL_WINDOW):
            left = max(0, start - context)
            stop = min(frames, start + TEMPORAL_WINDOW)
            piece = self._reader.temporal(embeddings[:, left : stop + context])
            pieces.append(piece[..., start - left : stop - left])
        return torch.cat(pieces, dim=-1)


def named_network(weights: str | Path) -> str | None:
    """The network that a weights file says it belongs to, as those made by this project do; ``None`` if it does not."""
    try:
        return network_of(weights)
    except WeightsError:
        return None  # loading it as some network says in full what is wrong with it


def default_features(network: str) -> str:
    """What to take from a network: the embedding of each frame of a lip reader, whose temporal part is for words; the
    temporal trunk's output of one that was trained to match mouths with voices."""
    return "frontend" if network not in NETWORKS or NETWORKS[network].words else "tcn"


def front_end_for(
    cache: str | Path, *, network: str, weights: str | Path, features: str, device: str, dtype: str
) -> FrontEnd:
    """Load a front-end that fits a cache: with ``dtype="auto"``, one in the precision its entries have.

    Args:
        cache: cache file, which need not exist.
        network, weights, features, device, dtype: as of ``FrontEnd``.

    Raises:
        ValueError: as of ``FrontEnd``, or the cache cannot be read.
    """
    settings = {"network": network, "weights": weights, "features": features, "device": device}
    front_end = FrontEnd(**settings, dtype=dtype)
    if dtype != "auto" or not Path(cache).exists():
        return front_end
    cached = FeatureCache(cache).identity
    if describe_difference(cached, {**front_end.identity, "dtype": cached["dtype"]}):
        return front_end  # other weights: its entries are stale, and nothing is to be continued
    return (
        front_end
        if cached["dtype"] == front_end.identity["dtype"]
        else FrontEnd(**settings, dtype=cached["dtype"])
    )


class _FrameNetwork(nn.Module):
    """A lip reader's stem and frame trunk on frames stacked with their neighbours.

    Shape:
        (N, 5, 88, 88) -> (N, D)
    """

    def __init__(self, reader: LipReader) -> None:
        super().__init__()
        convolution, norm, activation, pool = copy.deepcopy(reader.frontend3D)
        convolution = fuse_conv_bn_eval(convolution, norm)
        # With one input channel, the kernel's time axis can serve as the input channels of a 2D convolution.
        self.stem = nn.Conv2d(
            2 * STEM_CONTEXT_FRAMES + 1,
            convolution.out_channels,
            convolution.kernel_size[1:],
            stride=convolution.stride[1:],
            padding=convolution.padding[1:],
        )
        self.stem.weight.data = convolution.weight.data.squeeze(1)
        self.stem.bias.data = convolution.bias.data
        self.activation = activation
        pools = isinstance(pool, nn.MaxPool3d)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1) if pools else nn.Identity()
        self.trunk = _fold_batch_norms(copy.deepcopy(reader.trunk))
        self.to(memory_format=_LAYOUT)

    def forward(self, frames: Tensor) -> Tensor:
        hidden = self.stem(frames.contiguous(memory_format=_LAYOUT))  # (N, C, 44, 44)
        return self.trunk(self.pool(self.activation(hidden)))


def _fold_batch_norms(network: nn.Module) -> nn.Module:
    """Fold every batch norm into the convolution registered right before it, in place."""
    for module in list(network.modules()):
        children = list(module.named_children())
        for (name, layer), (next_name, next_layer) in pairwise(children):
            if isinstance(layer, nn.Conv2d) and isinstance(next_layer, nn.BatchNorm2d):
                setattr(module, name, fuse_conv_bn_eval(layer, next_layer))
                setattr(module, next_name, nn.Identity())
    return network


def _neighbours(lengths: Sequence[int]) -> Tensor:
    """For every frame of clips laid end to end, the five frames around it: (N, 5).

    A place beyond its clip's ends has index N, where the caller puts a frame of zeros: what the 3D convolution's
    padding would be.
    """
    counts = torch.tensor(lengths)
    stops = counts.cumsum(0)
    total = int(stops[-1])
    around = torch.arange(total)[:, None] + torch.arange(-STEM_CONTEXT_FRAMES, STEM_CONTEXT_FRAMES + 1)
    first = (stops - counts).repeat_interleave(counts)[:, None]
    last = stops.repeat_interleave(counts)[:, None]
    return around.masked_fill((around < first) | (around >= last), total)


def _choose_device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise FrontEndError(f"device={name!r} is unknown; use auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise FrontEndError(f"device={name!r}: no such GPU is visible to PyTorch; use --device cpu")
    return device


def _choose_dtype(name: str, device: torch.device, reader: LipReader, features: str) -> str:
    if name != "auto":
        if name not in DTYPES:
            raise FrontEndError(f"dtype={name!r} is unknown; choose auto, {' or '.join(DTYPES)}")
        return name
    # Error of bfloat16 on real mouths with seeded weights, as RMS relative to the embedding (and to its variation):
    # ResNet 1.7 % (7 %), ShuffleNet 6 % (26 %) for little gain in speed, dense temporal trunk on a ResNet 30 % (52 %).
    pays = isinstance(reader.trunk, ResNet18Trunk) and features == "frontend"
    return "bfloat16" if pays and has_bfloat16(device) else "float32"
