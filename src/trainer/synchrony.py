"""What of the lips goes with the voice: a linear map fitted in closed form, before any gradient.

Lip embeddings tell whose face it is far more loudly than what is said, and a network trained on few faces learns the
faces by heart. Canonical correlation analysis between lips and sound finds the few directions that move with the
voice, in any face. They are fixed before training, so that there is nothing to memorise them with. What they promise
on the faces they were fitted to they do not keep on others; how much of it they keep is measured on the validation
part, and in training the lips are made that much worse.

Axes: F video frames, D lip embedding, P principal components, L frames of context, M mel bands, K components.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchaudio.transforms import MelSpectrogram
from tqdm import tqdm

from pipeline.audio_io import SAMPLE_RATE_HZ, read_audio
from pipeline.cache import FeatureCache
from pipeline.speakers import read_speakers
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
        kept: (K,), share of each correlation that is left on voices not fitted to, 0 to 1.
    """

    projection: Tensor
    correlations: Tensor
    kept: Tensor


Pairs = Callable[[], Iterator[tuple[Tensor, Tensor, float]]]


def fit_synchrony(pairs: Pairs, components: int, unseen: Pairs | None = None) -> Synchrony:
    """Canonical correlation analysis of lips in context with log-mel frames in context.

    Args:
        pairs: called twice, each time yields (audio (T,) at 16 kHz, lips (F, D), weight of a frame) of each voice.
        components: K.
        unseen: the same of voices to measure on what is kept; None, or too few frames, take all as kept.

    Raises:
        ValueError: there are too few frames to fit.

    Reference:
        Hotelling, "Relations between two sets of variates", 1936; for audio-visual synchrony Slaney and Covell,
        "FaceSync", 2000. Ridge as in Vinod, "Canonical ridge", 1976.
    """
    covariance, total, num_frames = 0, 0.0, 0
    for _, lips, weight in pairs():
        motion = _centred(lips)
        covariance = covariance + weight * motion.T @ motion
        total += weight * len(motion)
        num_frames += len(motion)
    if num_frames < MIN_FRAMES:
        raise ValueError(
            f"{num_frames} frames of lips with voices are too few to fit the synchrony of lips and sound "
            f"({MIN_FRAMES} at least); set model.synchronous=0 and model.learnt=64"
        )
    principal = _whitening(covariance / total)  # (D, P)
    covariances = lips, sound, cross = _covariances(pairs, principal)
    lips_root, sound_root = _cholesky(lips), _cholesky(sound)
    whitened = torch.linalg.solve_triangular(lips_root, cross, upper=False)
    whitened = torch.linalg.solve_triangular(sound_root, whitened.T, upper=False).T
    of_lips, correlations, of_sound = torch.linalg.svd(whitened)
    of_lips = torch.linalg.solve_triangular(lips_root.T, of_lips[:, :components], upper=True)  # (L P, K)
    of_sound = torch.linalg.solve_triangular(sound_root.T, of_sound[:components].T, upper=True)  # (L M, K)
    kept = torch.ones(components, dtype=torch.double)
    if unseen is not None and (other := _covariances(unseen, principal)) is not None:
        fitted, left = (_correlations(of_lips, of_sound, of_part) for of_part in (covariances, other))
        kept = (left / fitted.clamp_min(1e-3)).clamp(0, 1)
    projection = of_lips.T.reshape(components, CONTEXT, -1) @ principal.T  # (K, L, D)
    return Synchrony(
        projection.transpose(1, 2).float().contiguous(), correlations[:components].float(), kept.float()
    )


def _covariances(pairs: Pairs, principal: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
    """Of the lips (L P, L P), of the sound (L M, L M), and of both (L P, L M), each in context; None for too few."""
    lips, sound, cross, total, num_frames = 0, 0, 0, 0.0, 0
    for audio, visual, weight in pairs():
        x = _in_context(_centred(visual) @ principal)
        y = _in_context(_centred(_log_mel(audio, len(visual))))
        lips, sound, cross = lips + weight * x.T @ x, sound + weight * y.T @ y, cross + weight * x.T @ y
        total += weight * len(x)
        num_frames += len(x)
    if num_frames < MIN_FRAMES:
        return None
    return lips / total, sound / total, cross / total


def _correlations(of_lips: Tensor, of_sound: Tensor, covariances: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Of each component of the lips with its partner in the sound. Shape: (L P, K), (L M, K) -> (K,)."""
    lips, sound, cross = covariances
    variances = (of_lips * (lips @ of_lips)).sum(0) * (of_sound * (sound @ of_sound)).sum(0)
    return (of_lips * (cross @ of_sound)).sum(0) / variances.sqrt()


def fit_lips(model: nn.Module, root: str, cache: str, speakers: str | None = None) -> None:
    """Fit the fixed directions of a separator's lips (`BandSeparator.lips`) to the training voices.

    What is kept of them is measured on the voices of the part "val", where they have enough frames with lips. With a
    table of speakers (see `DynamicMixingDataset`) all speakers weigh the same, however much there is of each.

    A model that has no such directions is left as it is.
    """
    encoder = getattr(model, "lips", None)
    if not isinstance(encoder, LipEncoder) or not len(encoder.synchrony):
        return
    seen, unseen = (voices_with_lips(root, part, cache, speakers) for part in ("train", "val"))
    fitted = fit_synchrony(seen, len(encoder.synchrony), unseen)
    encoder.fit(fitted.projection, fitted.kept)
    shown = ", ".join(
        f"{value:.2f} ({value * kept:.2f})"
        for value, kept in zip(fitted.correlations.tolist(), fitted.kept.tolist())
    )
    logger.info(f"Synchrony of lips and sound: canonical correlations (what is kept on other voices) {shown}")


def voices_with_lips(
    root: str, part: str, cache: str, speakers: str | None = None, max_voices: int = MAX_VOICES
) -> Pairs:
    """Single voices of a part of a data set with their cached lips, as `fit_synchrony` takes them.

    A part that does not exist has none.
    """
    features = FeatureCache(cache)
    mixes = mixture_index(root, part)[0] if (Path(root) / "audio" / part).is_dir() else []
    voices = [voice for voice in voice_index(mixes) if voice["id"] in features]
    chosen: Sequence[dict] = voices[:: max(1, -(-len(voices) // max_voices))]
    weights = dict.fromkeys((voice["id"] for voice in chosen), 1.0)
    if speakers is not None:
        # A table for the training part need not know the others.
        names = read_speakers(speakers, weights if part == "train" else [])
        names = {name: names.get(name) or name for name in weights}
        frames = Counter()
        for name in weights:
            frames[names[name]] += features.num_frames(name)
        weights = {name: 1 / frames[names[name]] for name in weights}

    def pairs() -> Iterator[tuple[Tensor, Tensor, float]]:
        for voice in tqdm(
            chosen, desc="synchrony of lips and sound", unit="voice", leave=False, disable=None
        ):
            lips = torch.from_numpy(features[voice["id"]].astype(np.float32))
            yield read_audio(voice["path"]), lips, weights[voice["id"]]

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
