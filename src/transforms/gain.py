"""Random level of a whole item."""

from collections.abc import Sequence

from pipeline.draw import chance, checked_probability, checked_range, uniform


class RandomGain:
    """Scales mixture and sources by one random gain, so that their sum relation holds.

    Args:
        p: probability that an item is changed.
        gain_db: lowest and highest gain.

    Raises:
        ValueError: an option has no possible value.
    """

    def __init__(self, p: float = 1.0, gain_db: Sequence[float] = (-15.0, 0.0)) -> None:
        self._p = checked_probability("p", p)
        self._gain_db = checked_range("gain_db", gain_db)

    def __call__(self, item: dict) -> dict:
        """Return the item with ``mix`` (T,) and, where it has them, ``sources`` (S, T) scaled."""
        if not chance(self._p):
            return item
        gain = 10 ** (uniform(*self._gain_db) / 20)
        return {**item, **{key: item[key] * gain for key in ("mix", "sources") if key in item}}
