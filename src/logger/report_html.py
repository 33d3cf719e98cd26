"""The HTML of the demonstration report: pictures, players and tables, all inside one page.

Axes: T samples, K frequency bins, N frames. Pictures are SVG drawn with the page's own colours, so that they follow
the reader's light or dark scheme; only the spectrogram's pixels are a PNG, on one colour scale per mixture.
"""

import base64
import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache

import numpy as np
import soundfile

from src.logger.utils import FLOOR_DB, spectrogram_db

# Colours of the spectrogram. Few enough that the PNG of a noisy picture stays small, and no step is seen.
_NUM_COLOURS = 64
_COLUMNS = 280

# The SVG's own units, about a CSS pixel each.
_WIDTH, _HEIGHT = 380, 250
_LEFT, _RIGHT = 36, 374
_WAVE_TOP, _WAVE_BOTTOM = 6, 66
_SPEC_TOP, _SPEC_BOTTOM = 74, 214


@dataclass(frozen=True)
class Track:
    """One signal of a mixture.

    Attributes:
        title: heading and alternative text.
        role: ``mix``, ``s1`` or ``s2``, which gives the colour.
        audio: (T,) float32 at ``rate_hz``.
    """

    title: str
    role: str
    audio: np.ndarray
    rate_hz: int


@dataclass(frozen=True)
class MixtureSection:
    """What is shown of one mixture.

    Attributes:
        columns: tracks that belong below each other: the mixture; each voice's estimate and truth.
        scores: rows of the table, the first one its heading; empty without scores.
        notes: what else the reader must know, such as a file that could not be read.
    """

    name: str
    columns: Sequence[Sequence[Track]]
    scores: Sequence[Sequence[str]] = ()
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Page:
    """The whole report.

    Attributes:
        headline: the result in one line, or what is shown where there is none.
        facts: what was run, as terms and descriptions.
        tables: score tables by caption; the first row of each is its heading.
    """

    title: str
    headline: str
    facts: Mapping[str, str]
    tables: Mapping[str, Sequence[Sequence[str]]]
    mixtures: Sequence[MixtureSection] = field(default_factory=list)


def render(page: Page) -> str:
    """The page as HTML."""
    facts = "".join(f"<dt>{_text(term)}</dt><dd>{_text(value)}</dd>" for term, value in page.facts.items())
    tables = "".join(_table(caption, rows) for caption, rows in page.tables.items())
    scores = (
        f'<section aria-labelledby="scores"><h2 id="scores">Scores</h2>\n<div class="tables">{tables}</div></section>\n'
        if tables
        else ""
    )
    sections = "".join(_mixture(index, section) for index, section in enumerate(page.mixtures, start=1))
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_text(page.title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f'<header><h1>{_text(page.title)}</h1>\n<p class="headline">{_text(page.headline)}</p>\n'
        f"<dl>{facts}</dl></header>\n<main>\n"
        f'{scores}<section aria-labelledby="mixtures"><h2 id="mixtures">Mixtures</h2>\n'
        f"{_legend()}{sections}</section>\n"
        "</main>\n</body>\n</html>\n"
    )


def _mixture(index: int, section: MixtureSection) -> str:
    tracks = [track for column in section.columns for track in column]
    parts = []
    if tracks:
        peak = max(float(np.abs(track.audio).max(initial=0.0)) for track in tracks)
        spectra = {id(track): _pooled_spectrum(track.audio) for track in tracks}
        peak_db = max(float(spectrum.max()) for spectrum in spectra.values())
        for column in section.columns:
            figures = "".join(
                _figure(section.name, track, spectra[id(track)], peak or 1.0, peak_db) for track in column
            )
            # The scores share the column of the mixture, which has no truth below it.
            extra = (
                _table("Scores of this mixture", section.scores) if column and column[0].role == "mix" else ""
            )
            parts.append(f'<div class="column">{figures}{extra}</div>')
    notes = "".join(f'<p class="note">{_text(note)}</p>' for note in section.notes)
    return (
        f'<article aria-labelledby="mixture-{index}"><h3 id="mixture-{index}">{_text(section.name)}</h3>\n{notes}'
        f'<div class="tracks">{"".join(parts)}</div></article>\n'
    )


def _figure(name: str, track: Track, spectrum: np.ndarray, peak: float, peak_db: float) -> str:
    duration_s = len(track.audio) / track.rate_hz
    description = (
        f"{track.title} of {name}: waveform and spectrogram, {duration_s:.2f} s, "
        f"largest amplitude {np.abs(track.audio).max(initial=0.0):.2f}"
    )
    picture = (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{_text(description)}">'
        f'<path class="wave {track.role}" d="{_envelope_path(track.audio, peak)}"/>'
        f'<image x="{_LEFT}" y="{_SPEC_TOP}" width="{_RIGHT - _LEFT}" height="{_SPEC_BOTTOM - _SPEC_TOP}" '
        f'preserveAspectRatio="none" href="{_spectrogram_png(spectrum, peak_db)}"/>'
        f"{_axes(duration_s, track.rate_hz, peak)}</svg>"
    )
    player = (
        f'<audio controls preload="metadata" aria-label="{_text(track.title)} of {_text(name)}" '
        f'src="{_flac(track.audio, track.rate_hz)}"></audio>'
    )
    return f"<figure><figcaption>{_text(track.title)}</figcaption>{picture}{player}</figure>\n"


def _envelope_path(audio: np.ndarray, peak: float) -> str:
    """Outline of the waveform: upper edge there, lower edge back."""
    edges = np.linspace(0, len(audio), min(_COLUMNS, len(audio)) + 1).astype(int)
    upper = np.maximum.reduceat(audio, edges[:-1])
    lower = np.minimum.reduceat(audio, edges[:-1])
    x = _LEFT + (_RIGHT - _LEFT) * (edges[:-1] + edges[1:]) / (2 * max(len(audio), 1))
    middle, half = (_WAVE_TOP + _WAVE_BOTTOM) / 2, (_WAVE_BOTTOM - _WAVE_TOP) / 2
    there = [f"{a:.1f} {middle - half * b / peak:.1f}" for a, b in zip(x, upper, strict=True)]
    back = [f"{a:.1f} {middle - half * b / peak:.1f}" for a, b in zip(x[::-1], lower[::-1], strict=True)]
    return f"M{'L'.join(there + back)}Z"


def _pooled_spectrum(audio: np.ndarray) -> np.ndarray:
    """(T,) -> (K, N) dB with 128 bins and some 280 frames, about the pixels it is shown on."""
    level_db = spectrogram_db(audio, n_fft=512, hop=max(32, len(audio) // _COLUMNS))
    return np.maximum(level_db[1::2], level_db[:-1:2])


def _spectrogram_png(level_db: np.ndarray, peak_db: float) -> str:
    shade = np.clip(1 + (level_db - peak_db) / -FLOOR_DB, 0.0, 1.0)
    return _png(np.round(shade[::-1] * (_NUM_COLOURS - 1)).astype(np.uint8))


def _png(indices: np.ndarray) -> str:
    from PIL import Image

    picture = Image.fromarray(indices).convert("P")
    picture.putpalette(_palette())
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True, bits=6)
    return _data_uri("image/png", buffer.getvalue())


@cache
def _palette() -> bytes:
    import matplotlib

    colours = matplotlib.colormaps["magma"](np.linspace(0, 1, _NUM_COLOURS))[:, :3]
    return np.round(colours * 255).astype(np.uint8).tobytes()


def _flac(audio: np.ndarray, rate_hz: int) -> str:
    buffer = io.BytesIO()
    soundfile.write(buffer, audio, rate_hz, format="FLAC", subtype="PCM_16")
    return _data_uri("audio/flac", buffer.getvalue())


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _axes(duration_s: float, rate_hz: int, peak: float) -> str:
    parts = [
        f'<path class="axis" d="M{_LEFT} {_WAVE_TOP}V{_WAVE_BOTTOM}M{_LEFT} {_SPEC_TOP}V{_SPEC_BOTTOM}H{_RIGHT}"/>',
        f'<text x="{_LEFT - 4}" y="{_WAVE_TOP + 9}" class="y">{peak:.2g}</text>',
        f'<text x="{_LEFT - 4}" y="{_WAVE_BOTTOM}" class="y">−{peak:.2g}</text>',
    ]
    top_khz = rate_hz / 2000
    for khz in _ticks(top_khz, 4):
        y = _SPEC_BOTTOM - (_SPEC_BOTTOM - _SPEC_TOP) * khz / top_khz
        label_y = min(max(y + 4, _SPEC_TOP + 9), _SPEC_BOTTOM)
        parts.append(f'<path class="axis" d="M{_LEFT - 3} {y:.1f}h3"/>')
        parts.append(f'<text x="{_LEFT - 4}" y="{label_y:.1f}" class="y">{khz:g}</text>')
    for second in _ticks(duration_s, 5):
        x = _LEFT + (_RIGHT - _LEFT) * second / duration_s
        anchor = ' class="y"' if x > _RIGHT - 8 else ""
        parts.append(f'<path class="axis" d="M{x:.1f} {_SPEC_BOTTOM}v3"/>')
        parts.append(f'<text x="{x:.1f}" y="{_SPEC_BOTTOM + 15}"{anchor}>{second:g}</text>')
    centre = (_SPEC_TOP + _SPEC_BOTTOM) / 2
    parts.append(f'<text x="{(_LEFT + _RIGHT) / 2}" y="{_HEIGHT - 5}">time, s</text>')
    parts.append(f'<text x="10" y="{centre}" transform="rotate(-90 10 {centre})">frequency, kHz</text>')
    return "".join(parts)


def _ticks(end: float, most: int) -> np.ndarray:
    """Round positions from 0 to ``end``, at most ``most`` steps."""
    raw = end / most
    magnitude = 10 ** np.floor(np.log10(raw))
    step = next(magnitude * factor for factor in (1, 2, 5, 10) if magnitude * factor >= raw * 0.999)
    return np.arange(0, end * 1.001, step)


def _legend() -> str:
    bar = _png(np.arange(_NUM_COLOURS, dtype=np.uint8)[None])
    return (
        "<p>Each picture shows the waveform above the spectrogram. Within a mixture all share one amplitude scale and "
        "one colour scale, and the players keep the level of the files.</p>\n"
        f'<p class="legend"><span>{FLOOR_DB:.0f} dB</span>'.replace("-", "−")
        + f'<img src="{bar}" alt="Colour scale from black, the lowest level, over red to pale yellow, the highest">'
        "<span>0 dB, the mixture's loudest spot in time and frequency</span></p>\n"
    )


def _table(caption: str, rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return ""
    heading = "".join(f'<th scope="col">{_text(cell)}</th>' for cell in rows[0])
    body = "".join(
        f'<tr><th scope="row">{_text(row[0])}</th>'
        + "".join(f"<td>{_text(cell)}</td>" for cell in row[1:])
        + "</tr>"
        for row in rows[1:]
    )
    # Wide tables scroll in a box of their own, which keyboards must reach.
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{_text(caption)}"><table>'
        f"<caption>{_text(caption)}</caption><thead><tr>{heading}</tr></thead><tbody>{body}</tbody></table></div>\n"
    )


def _text(value: str) -> str:
    return html.escape(str(value))


_STYLE = """
:root { color-scheme: light dark; --page: #fcfcfb; --ink: #1d1d1b; --soft: #5c5c58; --line: #d8d8d3;
  --card: #ffffff; --mix: #5f6368; --s1: #1f6fb2; --s2: #b4540a; }
@media (prefers-color-scheme: dark) { :root { --page: #16171a; --ink: #e9e9e6; --soft: #a9aaa6; --line: #3a3c41;
  --card: #1e2024; --mix: #a7abb1; --s1: #6db3ee; --s2: #f0975a; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 84rem; padding: 1.5rem 1.25rem 4rem; background: var(--page); color: var(--ink);
  font: 1rem/1.5 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .5rem; }
h2 { font-size: 1.3rem; margin: 2.2rem 0 .6rem; }
h3 { font-size: 1.05rem; margin: 0 0 .6rem; overflow-wrap: anywhere; }
.headline { font-size: 1.2rem; font-weight: 600; margin: 0 0 1rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1rem; margin: 0; }
dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; }
.tables { display: flex; flex-wrap: wrap; gap: 0 4rem; }
.scroll { overflow-x: auto; max-width: 100%; margin: 0 0 1.2rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--soft); padding-bottom: .3rem; }
th, td { padding: .25rem .8rem .25rem 0; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th:first-child { text-align: left; }
thead th { color: var(--soft); font-weight: 500; }
tbody th { font-weight: 500; }
article { background: var(--card); border: 1px solid var(--line); border-radius: .5rem; padding: 1rem;
  margin: 0 0 1.2rem; }
.tracks { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(20rem, 100%), 1fr)); gap: 1rem 1.5rem; }
.column { min-width: 0; }
.column table { font-size: .875rem; }
figure { margin: 0 0 1rem; }
figcaption { font-weight: 600; font-size: .95rem; }
svg { display: block; width: 100%; height: auto; }
svg text { fill: var(--soft); font-size: 11.5px; text-anchor: middle; }
svg text.y { text-anchor: end; }
.axis { fill: none; stroke: var(--soft); stroke-width: 1; }
.wave { stroke-width: .6; }
.wave.mix { fill: var(--mix); stroke: var(--mix); }
.wave.s1 { fill: var(--s1); stroke: var(--s1); }
.wave.s2 { fill: var(--s2); stroke: var(--s2); }
audio { display: block; width: 100%; height: 2.4rem; margin-top: .25rem; }
.legend { display: flex; align-items: center; gap: .6rem; flex-wrap: wrap; color: var(--soft); font-size: .9rem; }
.legend img { width: 12rem; height: .8rem; image-rendering: pixelated; }
.note { color: var(--soft); margin: 0 0 .6rem; }
"""
