"""What of the lips goes with the voice: a linear map fitted in closed form, before any gradient.

Lip embeddings tell whose face it is far more loudly than what is said, and a network trained on few faces learns the
faces by heart. Canonical correlation analysis between lips and sound finds the few directions that move with the
voice, in any face. They are fixed before training, so that there is nothing to memorise them with.

Axes: F video frames, D lip embedding, P principal components, L frames of context, M mel bands, K components.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchaudio.transforms import MelSpectrogram
from tqdm import tqdm

from pipeline.audio_io import SAMPLE_RATE_HZ, read_audio
from pipeline.cache import FeatureCache
from src.datasets.dynamic_mixing import voice_index
from src.datasets.lips import FRAME_SAMPLES
from src.datasets.mixture import mixture_index
from src.model.blocks.lip_fusion import LipEncoder

logger = logging.getLogger(__name__)

CONTEXT = 5  # L, centred
PRINCIPAL = 200
MEL_BANDS = 20
RIDGE = 0.1  # share of the mean variance that is added to each variance
MAX_VOICES = 4000
MIN_FRAMES = 250


@dataclass(frozen=True)
class Synchrony:
    """The map, and what it achieves.

    Attributes:
        projection: (K, D, L), kernel of a convolution over lips less their mean over time; on the voices fitted to,
            every component has unit variance.
        correlations: (K,), of each component with the sound.
    """

    projection: Tensor
    correlations: Tensor


def fit_synchrony(pairs: Callable[[], Iterator[tuple[Tensor, Tensor]]], components: int) -> Synchrony:
    """Canonical correlation analysis of lips in context with log-mel frames in context.

    Args:
        pairs: called twice, yields (audio (T,) at 16 kHz, lips (F, D)) of each voice.
        components: K.

    Raises:
        ValueError: there are too few frames to fit.

    Reference:
        Hotelling, "Relations between two sets of variates", 1936; for audio-visual synchrony Slaney and Covell,
        "FaceSync", 2000. Ridge as in Vinod, "Canonical ridge", 1976.
    """
    covariance, num_frames = 0, 0
    for _, lips in pairs():
        motion = _centred(lips)
        covariance = covariance + motion.T @ motion
        num_frames += len(motion)
    if num_frames < MIN_FRAMES:
        raise ValueError(
            f"{num_frames} frames of lips with voices are too few to fit the synchrony of lips and sound "
            f"({MIN_FRAMES} at least); set model.synchronous=0 and model.learnt=64"
        )
    principal = _whitening(covariance / num_frames)  # (D, P)
    blocks = dict.fromkeys(("lips", "sound", "cross"), 0)
    for audio, lips in pairs():
        x = _in_context(_centred(lips) @ principal)
        y = _in_context(_centred(_log_mel(audio, len(lips))))
        blocks["lips"] = blocks["lips"] + x.T @ x
        blocks["sound"] = blocks["sound"] + y.T @ y
        blocks["cross"] = blocks["cross"] + x.T @ y
    lips_root, sound_root = (_cholesky(blocks[name] / num_frames) for name in ("lips", "sound"))
    whitened = torch.linalg.solve_triangular(lips_root, blocks["cross"] / num_frames, upper=False)
    whitened = torch.linalg.solve_triangular(sound_root, whitened.T, upper=False).T
    directions, correlations, _ = torch.linalg.svd(whitened)
    weights = torch.linalg.solve_triangular(lips_root.T, directions[:, :components], upper=True)  # (L P, K)
    weights = weights.T.reshape(components, CONTEXT, -1) @ principal.T  # (K, L, D)
    return Synchrony(weights.transpose(1, 2).float().contiguous(), correlations[:components].float())


def fit_lips(model: nn.Module, root: str, cache: str) -> None:
    """Fit the fixed directions of a separator's lips (`BandSeparator.lips`) to the training voices.

    A model that has none is left as it is.
    """
    encoder = getattr(model, "lips", None)
    if not isinstance(encoder, LipEncoder) or not len(encoder.synchrony):
        return
    fitted = fit_synchrony(voices_with_lips(root, "train", cache), len(encoder.synchrony))
    encoder.fit(fitted.projection)
    shown = ", ".join(f"{value:.2f}" for value in fitted.correlations.tolist())
    logger.info(f"Synchrony of lips and sound: canonical correlations {shown}")


def voices_with_lips(
    root: str, part: str, cache: str, max_voices: int = MAX_VOICES
) -> Callable[[], Iterator[tuple[Tensor, Tensor]]]:
    """Single voices of a part of a data set with their cached lips, as `fit_synchrony` takes them."""
    features = FeatureCache(cache)
    voices = [voice for voice in voice_index(mixture_index(root, part)[0]) if voice["id"] in features]
    chosen: Sequence[dict] = voices[:: max(1, -(-len(voices) // max_voices))]

    def pairs() -> Iterator[tuple[Tensor, Tensor]]:
        for voice in tqdm(
            chosen, desc="synchrony of lips and sound", unit="voice", leave=False, disable=None
        ):
            lips = torch.from_numpy(features[voice["id"]].astype(np.float32))
            yield read_audio(voice["path"]), lips

    return pairs


def _log_mel(audio: Tensor, num_frames: int) -> Tensor:
    """Log-mel spectrum around every video frame, level taken out. Shape: (T,) -> (F, M)."""
    margin = FRAME_SAMPLES // 2
    wanted = num_frames * FRAME_SAMPLES
    audio = functional.pad(audio[:wanted], (margin, margin + max(0, wanted - len(audio))))
    audio = audio / audio.square().mean().sqrt().clamp_min(1e-4)
    return (_MEL(audio) + 1e-3).log().T


_MEL = MelSpectrogram(
    SAMPLE_RATE_HZ, n_fft=2 * FRAME_SAMPLES, hop_length=FRAME_SAMPLES, n_mels=MEL_BANDS, center=False
)


def _centred(frames: Tensor) -> Tensor:
    """Less the mean over time, in double precision."""
    return (frames - frames.mean(0)).double()


def _in_context(frames: Tensor) -> Tensor:
    """Every frame with its neighbours, zeros beyond the ends. Shape: (F, P) -> (F, L P)."""
    margin = CONTEXT // 2
    padded = functional.pad(frames, (0, 0, margin, margin))
    return padded.unfold(0, CONTEXT, 1).transpose(1, 2).flatten(1)


def _whitening(covariance: Tensor) -> Tensor:
    """Leading principal directions, each scaled to unit variance. Shape: (D, D) -> (D, P)."""
    variances, directions = torch.linalg.eigh(covariance)
    kept = variances > 1e-6 * variances[-1]
    variances, directions = variances[kept][-PRINCIPAL:], directions[:, kept][:, -PRINCIPAL:]
    return directions / variances.sqrt()


def _cholesky(covariance: Tensor) -> Tensor:
    ridge = RIDGE * covariance.diagonal().mean()
    return torch.linalg.cholesky(covariance + ridge * torch.eye(len(covariance), dtype=covariance.dtype))
