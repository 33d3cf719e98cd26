"""Band-split separator of two voices in one pass, cued by lips or by nothing.

STFT -> band split -> shared audio blocks -> anonymous voice blocks -> matching of voices to lips -> voice blocks cued
by lips, with exchange, in one round or more -> mask per voice under mixture consistency -> inverse STFT. In some of the
voice blocks frames attend to each other. Another pass may refine the estimates of an earlier one.

Axes: B batch, S = 2 voices, T samples, F video frames, D lip embedding, N STFT frames, Q bins, K bands,
C channels.
"""

import torch
from torch import Tensor, nn

from src.model.blocks.absent_lips import AbsentLips
from src.model.blocks.band_split import BandDecoder, BandEncoder
from src.model.blocks.lip_fusion import SAMPLES_PER_VIDEO_FRAME, LipEncoder
from src.model.blocks.lip_matching import LipMatching
from src.model.blocks.lip_tracking import LipTracking
from src.model.blocks.refinement import Refinement
from src.model.blocks.repeat_gate import RepeatGate
from src.model.blocks.stft import Stft
from src.model.blocks.time_frequency import SpeakerExchange, TimeFrequencyBlock
from src.model.blocks.voices import NUM_VOICES, lips_used, no_lips, summary, unit_level

SAMPLE_RATE_HZ = 16000
FUSIONS = ("scale_shift", "shift")
# Voices are tracked over stretches of these lengths, each with its weight before training. The longest is all there is
# in mixtures of 2 s, and keeps longer ones from differing.
STRETCHES_MS = {128: 0.0, 256: 2.0, 512: 4.0, 1024: 1.0, 4000: 1.0}
REFINED_STRETCH_MS = 144  # over which voices are told from each other by an earlier pass


def _odd_frames(milliseconds: float, hop: int) -> int:
    """STFT frames of a stretch with one in its middle."""
    return 2 * round(milliseconds * SAMPLE_RATE_HZ / 2000 / hop) + 1


class LipCue(nn.Module):
    """Lip cue of one voice block: scale and shift of every channel, and a shift of the full-band vector.

    Args:
        cue_channels: V.
        channels: C.
        full_band: width of the full-band vector.
        scales: False leaves the shifts only.
    """

    def __init__(self, cue_channels: int, channels: int, full_band: int, *, scales: bool) -> None:
        super().__init__()
        self.shift = nn.Linear(cue_channels, channels)
        self.scale = nn.Linear(cue_channels, channels) if scales else None
        self.full_band = nn.Linear(cue_channels, full_band)

    def begin_as_identity(self) -> None:
        """Let the cue change nothing, as for a block that is added to a trained separator."""
        for parameter in self.parameters():
            nn.init.zeros_(parameter)

    def forward(self, embedding: Tensor, cue: Tensor) -> tuple[Tensor, Tensor]:
        """Shape: (B, N, K, C), cue (B, N, V) -> (B, N, K, C), (B, N, full_band)."""
        if self.scale is not None:
            embedding = embedding * (1 + self.scale(cue)[:, :, None])
        return embedding + self.shift(cue)[:, :, None], self.full_band(cue)


class BandSeparator(nn.Module):
    """Both voices of a mixture, each on its own; their sum is the mixture.

    Swapping the two speakers' lips swaps the two estimates: the voices share every weight, and the lips decide
    which is which. Without lips two learnt cues stand in for them and the order is arbitrary (train with
    permutation-invariant loss). Level-invariant: the mixture is scaled to unit RMS inside.

    Args:
        visual_dim: dimensions of the lip embedding, or 0 for an audio-only separator.
        num_bands, channels: K and C.
        shared_blocks, voice_blocks: number of blocks before and after the voices part.
        squeezed: channels a band keeps in the full-band vector.
        cue_channels: width of the lip cue.
        synchronous, learnt: directions of the lip embedding that are fitted before training and that are learnt in
            it, see `LipEncoder`.
        cue_dropout: dropout on the projected lip embedding in training.
        as_unseen: training lips are made as weak as those of faces that the fitted directions were not fitted to.
        fusion: "scale_shift" or "shift": what the lips do to the channels of a voice block.
        deep_fusion: lips cue every voice block; False: the first one only.
        anonymous_blocks: voice blocks that run before the lips are matched to the voices, with learnt cues in place of
            lips; 0 matches nothing, and lips cue all blocks.
        max_lag: steps that the lips may be out of step with the voice; they are matched at all lags up to it and
            brought into step. 0 takes them as they are.
        matching_step: STFT frames between two that lips are matched at.
        matching_channels: width of the network that tells the movement of the lips from the voice; 0 is a linear map.
        exchange: whether voices see each other between voice blocks.
        consistent: masks of the two voices sum to one, so that the estimates sum to the mixture.
        complex_masks: masks have an imaginary part, and may turn the phase of the mixture.
        window, hop: STFT, in samples at 16 kHz.
        dilations: time dilation of one block after the other, shared ones first; repeated as often as needed.
        units: of a bidirectional LSTM along time in place of the full-band convolution; 0 is the convolution.
        heads: of attention along time over the frames of both voices, in the last voice block before the lips are
            matched and in every third after it; 0 is none. Not beside units.
        rounds: times that the voice blocks cued by lips are run one after the other, with the same weights.
        tracking: whether, once they are matched, the voices may change places for a while, where they move with each
            other's lips; without a matching there is nothing to track them by.
        refining: whether a pass can be given the estimates of an earlier one, to go on from.

    Raises:
        ValueError: an unknown fusion, no round, heads beside units, or an STFT or band split that cannot be.
    """

    HALF_WEIGHTS = True  # runs in the format of its weights, see `src.trainer.half_weights`

    def __init__(
        self,
        *,
        visual_dim: int = 512,
        num_bands: int = 24,
        channels: int = 48,
        shared_blocks: int = 2,
        voice_blocks: int = 3,
        squeezed: int = 6,
        cue_channels: int = 64,
        synchronous: int = 8,
        learnt: int = 0,
        cue_dropout: float = 0.1,
        as_unseen: bool = True,
        fusion: str = "scale_shift",
        deep_fusion: bool = True,
        anonymous_blocks: int = 1,
        max_lag: int = 0,
        matching_step: int = 1,
        matching_channels: int = 0,
        exchange: bool = True,
        consistent: bool = True,
        complex_masks: bool = False,
        window: int = 512,
        hop: int = 256,
        dilations: tuple[int, ...] = (1, 2, 4, 8, 16),
        units: int = 0,
        heads: int = 0,
        rounds: int = 1,
        tracking: bool = False,
        refining: bool = False,
    ) -> None:
        super().__init__()
        if not 0 <= anonymous_blocks < voice_blocks:
            raise ValueError(
                f"model.anonymous_blocks={anonymous_blocks}: must be 0 to {voice_blocks - 1}, so that one of "
                f"model.voice_blocks={voice_blocks} sees the lips"
            )
        if fusion not in FUSIONS:
            raise ValueError(f"model.fusion={fusion}: choose one of {', '.join(FUSIONS)}")
        if rounds < 1:
            raise ValueError(f"model.rounds={rounds}: must be 1 or more")
        if heads and units:
            raise ValueError(f"model.heads={heads}: there is no attention beside an LSTM; set model.units=0")
        self.visual_dim, self.anonymous_blocks, self.consistent = visual_dim, anonymous_blocks, consistent
        self.stft = Stft(window, hop)
        self.encoder = BandEncoder(self.stft.num_bins, num_bands, num_features=3, channels=channels)

        blocks = [
            TimeFrequencyBlock(
                channels,
                num_bands,
                squeezed,
                dilations[i % len(dilations)],
                units,
                heads if i >= shared_blocks and (i - shared_blocks - anonymous_blocks) % 3 == 2 else 0,
            )
            for i in range(shared_blocks + voice_blocks)
        ]
        self.shared = nn.ModuleList(blocks[:shared_blocks])
        self.voices = nn.ModuleList(blocks[shared_blocks:])
        self.exchange = nn.ModuleList(
            SpeakerExchange(channels) for _ in range(voice_blocks if exchange else 0)
        )
        self.repeats = nn.ModuleList(RepeatGate(channels) for _ in range(rounds - 1))
        self.absent = AbsentLips(cue_channels)
        if visual_dim:
            self.lips = LipEncoder(
                visual_dim,
                cue_channels,
                synchronous=synchronous,
                learnt=learnt,
                dropout=cue_dropout,
                as_unseen=as_unseen,
            )
            if anonymous_blocks:
                self.matching = LipMatching(
                    channels,
                    num_bands,
                    squeezed,
                    self.lips.num_directions,
                    max_lag,
                    matching_channels,
                    step=matching_step,
                )
        stretches = {_odd_frames(ms, hop): weight for ms, weight in STRETCHES_MS.items()}
        self.tracking = LipTracking(stretches) if tracking and visual_dim and anonymous_blocks else None
        self.refinement = Refinement(channels, _odd_frames(REFINED_STRETCH_MS, hop)) if refining else None
        self.first_cued = (
            0 if deep_fusion else anonymous_blocks
        )  # a single cue is that of the first to see the lips
        self.cues = nn.ModuleList(
            LipCue(cue_channels, channels, num_bands * squeezed, scales=fusion == "scale_shift")
            for _ in range(voice_blocks if deep_fusion else 1)
        )
        self.norm = nn.LayerNorm(channels)
        decoders = [
            BandDecoder(self.stft.num_bins, num_bands, channels, bias=not consistent)
            for _ in range(1 + complex_masks)
        ]
        self.decoder, self.imaginary = decoders[0], decoders[1] if complex_masks else None

    @property
    def weighed_frames(self) -> int:
        """Whole video frames that lips may be out of step by, since lags are weighed; 0 takes them as they are."""
        if not (self.visual_dim and self.anonymous_blocks):
            return 0
        return self.matching.max_lag * self.matching.step * self.stft.hop // SAMPLES_PER_VIDEO_FRAME

    @property
    def refines(self) -> bool:
        """Whether a pass takes the estimates of an earlier one."""
        return self.refinement is not None

    @staticmethod
    def features(spectrum: Tensor) -> Tensor:
        """Compressed real and imaginary part and magnitude. Shape: complex (B, Q, N) -> (B, N, Q, 3)."""
        magnitude = spectrum.abs().clamp_min(1e-5)
        compressed = magnitude.pow(0.3)
        phase = spectrum / magnitude
        parts = torch.stack([phase.real * compressed, phase.imag * compressed, compressed], dim=-1)
        return parts.transpose(1, 2)

    def forward(
        self,
        mix: Tensor,
        visual: Tensor | None = None,
        visual_mask: Tensor | None = None,
        earlier: Tensor | None = None,
        **batch: object,
    ) -> dict[str, Tensor]:
        """Separate a batch of mixtures.

        Shape: mix (B, T), visual (B, S, F, D) or None, visual_mask (B, S) bool or None (all lips present), earlier
        (B, S, T), estimates of an earlier pass whose order is kept, or None
        -> {"estimates": (B, S, T), "visual_mask": (B, S) bool}. The mask returned tells which lips were used: none
        in an audio-only separator, whatever the batch held, so that loss and metrics know whether the order
        of the voices is given. Where lips are matched to voices, also {"order": (B,), log odds that the order of the
        voices before that, with an earlier pass the order of that, is the one of the lips}, and in the training of a
        first pass {"anonymous": (B, S, T), estimates out of what the voices are then, "likelihood": (B S, B S), log
        likelihood of all lips of the batch (columns) under all its voices (rows)}.

        Raises:
            ValueError: the lip embeddings are not `visual_dim` wide; estimates of an earlier pass are given to a model
                that does not refine.
        """
        if earlier is not None and self.refinement is None:
            raise ValueError("model.refining=false: a pass of this model cannot go on from an earlier one")
        unit, level = unit_level(mix)
        with torch.autocast(mix.device.type, enabled=False):
            spectrum = self.stft(unit.float())
            features = self.features(spectrum)
        num_frames = features.shape[1]
        embedding = self.encoder(features.to(self.norm.weight.dtype))
        for block in self.shared:
            embedding = block(embedding)
        used = lips_used(visual, visual_mask, mix) if self.visual_dim else no_lips(mix)
        absent = self.absent(used)[:, :, None].expand(-1, -1, num_frames, -1)
        cue, directions = absent, None
        frames_per_second = SAMPLE_RATE_HZ / self.stft.hop
        if self.visual_dim and visual is not None and visual.shape[2]:
            cue, directions = self.lips(visual, used, num_frames, self.stft.hop)
            cue = torch.where(used[:, :, None, None], cue, absent)
        anonymous = self.absent(no_lips(mix))[:, :, None].expand(-1, -1, num_frames, -1)
        embedding = embedding[:, None].expand(-1, NUM_VOICES, -1, -1, -1)
        outputs = {"visual_mask": used}
        for i in range(self.anonymous_blocks):
            embedding = self._voice_block(i, embedding, anonymous)
        seen = None
        if earlier is not None:
            with torch.autocast(mix.device.type, enabled=False):
                seen = self.stft((earlier.float() / level[:, None]).flatten(0, 1))
            apart = self._spectra(embedding, spectrum)
            embedding = self.refinement.placed(embedding, apart, seen.unflatten(0, (-1, NUM_VOICES)))
        if self.anonymous_blocks and directions is not None:
            evidence = self.matching.evidence(
                embedding, directions, used, frames_per_second, across=self.training and seen is None
            )
            if self.training and seen is None:
                outputs["anonymous"] = self._decode(embedding, spectrum, mix.shape[-1]) * level[:, None]
                outputs["likelihood"] = evidence.likelihood
            outputs["order"] = evidence.order
            if seen is None:
                embedding = self.matching(embedding, evidence.order, used)
            cue = torch.where(used[:, :, None, None], self.matching.in_step(cue, evidence.lags), cue)
            if self.tracking is not None and seen is None:
                in_step = self.matching.in_step(directions, evidence.lags)
                by_frame = self.matching.by_frame(embedding, in_step, used, frames_per_second)
                embedding = self.tracking(embedding, by_frame, used)
        if seen is not None:
            estimates = self.encoder(self.features(seen).to(self.norm.weight.dtype))
            embedding = self.refinement(embedding, estimates.unflatten(0, (-1, NUM_VOICES)))
        embedding = self._cued_blocks(embedding, cue)
        for repeat in self.repeats:
            embedding = repeat(embedding, self._cued_blocks(embedding, cue))
        outputs["estimates"] = self._decode(embedding, spectrum, mix.shape[-1]) * level[:, None]
        return outputs

    def _cued_blocks(self, embedding: Tensor, cue: Tensor) -> Tensor:
        """Shape: (B, S, N, K, C), cue (B, S, N, V) -> (B, S, N, K, C)."""
        for i in range(self.anonymous_blocks, len(self.voices)):
            embedding = self._voice_block(i, embedding, cue)
        return embedding

    def _voice_block(self, i: int, embedding: Tensor, cue: Tensor) -> Tensor:
        """Shape: (B, S, N, K, C), cue (B, S, N, V) -> (B, S, N, K, C)."""
        if self.exchange:
            embedding = self.exchange[i](embedding)
        voices, full_band = embedding.flatten(0, 1), None
        place = i - self.first_cued
        if 0 <= place < len(self.cues):
            voices, full_band = self.cues[place](voices, cue.flatten(0, 1))
        return self.voices[i](voices, full_band).unflatten(0, (-1, NUM_VOICES))

    def _decode(self, embedding: Tensor, spectrum: Tensor, num_samples: int) -> Tensor:
        """Shape: embedding (B, S, N, K, C), complex spectrum (B, Q, N) -> (B, S, T) at the level of the spectrum."""
        spectra = self._spectra(embedding, spectrum)
        with torch.autocast(spectrum.device.type, enabled=False):
            return self.stft.inverse(spectra, num_samples)

    def _spectra(self, embedding: Tensor, spectrum: Tensor) -> Tensor:
        """Spectra of both voices. Shape: embedding (B, S, N, K, C), complex (B, Q, N) -> complex (B, S, Q, N)."""
        embedding = self.norm(embedding).flatten(0, 1)
        masks = self.decoder(embedding).float() + 0.5
        if self.imaginary is not None:
            masks = torch.complex(masks, self.imaginary(embedding).float())
        masks = masks.unflatten(0, (-1, NUM_VOICES))
        # Half the mixture each, plus what one voice has and the other lacks: masks sum to one in every bin
        # (mixture consistency, Wisdom et al. 2019, eq. 7, with equal weights), and untrained estimates are halves.
        if self.consistent:
            masks = (masks - masks.flip(1) + 1) / 2
        with torch.autocast(spectrum.device.type, enabled=False):
            return masks.transpose(-1, -2) * spectrum[:, None]

    def __str__(self) -> str:
        """Layers, then the number of parameters."""
        return summary(self)
