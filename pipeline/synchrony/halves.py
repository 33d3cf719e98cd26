"""The two halves of a lip encoder as files: mouths in `lips.safetensors`, voices in `sound.safetensors` beside it."""

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.lipreading import LipReader
from pipeline.lipreading.weights import WeightsError, half_precision, load_network, network_of
from pipeline.synchrony.sound import SoundEncoder

LIP_FILE, SOUND_FILE = "lips.safetensors", "sound.safetensors"


def save_halves(
    folder: Path, lips: Mapping[str, Tensor], sound: Mapping[str, Tensor], about: dict[str, str] | None
) -> None:
    """Write both halves in half precision, each at once.

    Args:
        folder: that lies there; files in it are replaced.
        lips, sound: state dicts.
        about: what is recorded with both, if anything.
    """
    for name, state in ((LIP_FILE, lips), (SOUND_FILE, sound)):
        partial = folder / f"{name}.part"
        save_file(half_precision(state), partial, metadata=about)
        partial.replace(folder / name)


def load_halves(folder: str | Path) -> tuple[LipReader, SoundEncoder]:
    """Both halves out of a folder.

    Raises:
        WeightsError: a file is absent, damaged or of something else.
    """
    path = Path(folder) / LIP_FILE
    name = network_of(path)
    if name is None:
        raise WeightsError(f"weights {path}: do not say which network they are of")
    reader = load_network(name, path)
    return reader, load_sound(Path(folder) / SOUND_FILE, reader.trunk_dim)


def load_sound(path: str | Path, dim: int) -> SoundEncoder:
    """The voices' half, in evaluation mode.

    Args:
        path: its file.
        dim: P, of the space that it shares with the lips.

    Raises:
        WeightsError: the file is absent, damaged or of something else.
    """
    sound = SoundEncoder(dim)
    try:
        state = load_file(path)
        sound.load_state_dict({key: v.float() if v.is_floating_point() else v for key, v in state.items()})
    except (OSError, SafetensorError, RuntimeError) as error:
        raise WeightsError(f"weights {path}: cannot be loaded ({error}); train both halves anew") from error
    return sound.eval()


def sound_of(lips: Path) -> Path | None:
    """The file of the voices' half that was trained with a file of the mouths' half; None where it is not beside it."""
    sound = lips.with_name(SOUND_FILE)
    together = lips.name == LIP_FILE and sound.is_file() and made_as(lips) == made_as(sound)
    return sound if together else None


def made_as(path: Path) -> dict[str, str] | None:
    """What the training wrote of itself into both halves.

    Raises:
        WeightsError: the file is damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata()
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"weights {path}: cannot be read ({error}); fetch or train them again") from error
