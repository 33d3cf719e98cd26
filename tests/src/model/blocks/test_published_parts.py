"""Parts of the published separators that are written otherwise than the papers put them compute the same."""

import torch
from torch import nn
from torch.nn import functional

from src.model.blocks.cross_attention_fusion import NormedChannelScale
from src.model.blocks.frame_alignment import audio_at_video, video_at_audio
from src.model.blocks.spectral_source_separation import SpectralSourceSeparation, SpectrumDecoder
from src.model.blocks.time_frequency_path import Path


def test_channel_scale_is_a_depthwise_convolution_and_gln():
    torch.manual_seed(0)
    audio, fused = torch.randn(2, 6, 5, 7) + 3, NormedChannelScale(6)
    nn.init.normal_(fused.norm_weight)
    nn.init.normal_(fused.norm_bias)
    scale, shift = fused(audio.mean(dim=(2, 3)), audio.var(dim=(2, 3), correction=0))
    convolved = functional.conv2d(audio, fused.weight[:, None, None, None], groups=6)
    expected = functional.group_norm(convolved, 1, fused.norm_weight, fused.norm_bias, 1e-8)
    torch.testing.assert_close(audio * scale + shift, expected, atol=1e-5, rtol=1e-5)


def test_a_path_folds_with_a_transposed_convolution():
    torch.manual_seed(0)
    path, steps = Path(3, hidden=2, layers=1, window=4), torch.randn(9, 3, 5)
    unfolded = path.norm(steps).unfold(0, 4, 1)  # (L, C, B, K)
    hidden = path.rnn(unfolded.permute(0, 3, 1, 2).flatten(1, 2))  # (L - 3, 4, B)
    # fold is (C, K, 2 H), latest tap first: window k of the padded steps holds the hidden step k - 3 places before
    kernel = path.fold.unflatten(1, (4, 4)).permute(2, 0, 1).flip(2)
    folded = functional.conv_transpose1d(hidden.permute(2, 1, 0), kernel, path.bias[:, 0])
    torch.testing.assert_close(path(steps), steps + folded.permute(2, 1, 0), atol=1e-5, rtol=1e-5)


def test_the_decoder_is_a_transposed_convolution():
    torch.manual_seed(0)
    decoder = SpectrumDecoder(4)
    real, imaginary = torch.randn(2, 2, 2, 5, 7)
    kernel = decoder.weight.unflatten(0, (2, 3, 3)).permute(3, 0, 1, 2)
    expected = functional.conv_transpose2d(
        torch.cat([real, imaginary], dim=1), kernel, decoder.bias.flatten(), padding=1
    )
    torch.testing.assert_close(decoder(real, imaginary), expected, atol=1e-5, rtol=1e-5)


def test_the_mask_is_complex():
    torch.manual_seed(0)
    separation, features, encoded = SpectralSourceSeparation(4), *torch.randn(2, 1, 4, 5, 7)
    mask = torch.complex(*separation.mask(features).chunk(2, dim=1))
    expected = mask * torch.complex(*encoded.chunk(2, dim=1))
    torch.testing.assert_close(torch.complex(*separation(features, encoded)), expected)


def test_lips_and_sound_meet_by_time():
    """A video frame lasts 640 samples; lips that end before the sound are held, not stretched."""
    video = torch.arange(3.0)[None, None]
    shown = video_at_audio(video, 14, hop=160)[0, 0]
    assert shown.tolist() == [0] * 4 + [1] * 4 + [2] * 6
    audio = torch.arange(14.0)[None, None]
    assert audio_at_video(audio, 4, hop=160)[0, 0].tolist() == [2, 6, 10, 13]
