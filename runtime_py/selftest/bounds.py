"""How far a kernel may be from its twin, and by how much it is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from schedules.activations import CODE_WORDS, GROUP, LARGEST_CODE, PLANES, decode, record_words
from schedules.layout import Q4_ZERO

from .memory import bits_of, poisoned

_EXACT = 1e-12  # NMSE of float32 arithmetic against float64, sums of up to 281 products
_ROUNDING = 2.0**-48  # the same per product of a longer sum: six times what a chain of roundings gives on average


@dataclass(frozen=True)
class Bound:
    """``nmse``: sum of squared errors over sum of squares. ``largest``: error of an element, as a share of the larger
    of its own size and its row's root mean square: one wrong element does not hide behind many right ones."""

    nmse: float
    largest: float

    @classmethod
    def exact(cls, terms: int = 1) -> Bound:
        """Of float32 arithmetic; ``terms``: products in one output's sums."""
        nmse = max(_EXACT, terms * _ROUNDING)
        return cls(nmse, 30 * nmse**0.5)

    @classmethod
    def recoded(cls, activations: str, terms: int) -> Bound:
        """Where a kernel rounds to codes in between: float32 errors may turn a code into its neighbour."""
        if activations == "f32":
            return cls.exact(terms)
        return cls(LARGEST_CODE[activations]**-2.0, 4 / LARGEST_CODE[activations])

    @classmethod
    def stored(cls, dtype: str, terms: int = 1) -> Bound:
        """Of results that are rounded to ``dtype``."""
        return cls.exact(terms) if dtype == "float32" else cls(2.0**-22, 2.0**-10)


class Mismatch(Exception):
    """A kernel does something else than its twin; the message goes on after the kernel's name."""


@dataclass
class Written:
    """What a kernel is to write. ``expected``: the values, float64 or integers; ``bound`` None: the very bits.

    ``mask`` (bool over the leading axes): what is written, ``expected`` being ``tensor[mask]`` then; all else stays as
    it was: ``before``, or poison. ``activations``: how the values are stored (``schedules.activations``)."""

    shape: tuple[int, ...]
    dtype: str
    expected: np.ndarray
    bound: Bound | None = None
    mask: np.ndarray | None = None
    before: np.ndarray | None = None
    activations: str = "f32"

    def start(self) -> np.ndarray:
        """What the tensor holds before the kernel runs."""
        return poisoned(self.shape, self.dtype) if self.before is None else self.before

    def compare(self, found: np.ndarray) -> Error:
        """Hold what the tensor holds afterwards against the twin. Raises Mismatch."""
        untouched = bits_of(found) == bits_of(self.start())
        if self.mask is not None:
            if not untouched[~self.mask].all():
                raise Mismatch(f"writes elements that it must leave alone, {_first(~self._spread(untouched), self)}")
            found, untouched = found[self.mask], untouched[self.mask]
        if self.before is None and untouched.any():
            raise Mismatch(f"leaves {untouched.sum()} of {untouched.size} elements unwritten, the first at "
                           f"{_index(untouched)}")
        if self.bound is None:
            differing = bits_of(found) != bits_of(self.expected)
            if differing.any():
                at = _index(differing)
                raise Mismatch(f"gives {found[at]} instead of {self.expected[at]} at {at}")
            return Error(0.0, 0.0, 0.0)
        if not found.size:
            return Error(0.0, self.bound.nmse, 0.0)
        if self.activations != "f32":
            _check_sums(found, self.activations)
            found = decode(found, self.activations, self.expected.shape[-1])
        return self._error(found.astype(np.float64))

    def _spread(self, untouched: np.ndarray) -> np.ndarray:
        """``untouched`` with everything that may be written taken out."""
        result = untouched.copy()
        result[self.mask] = True
        return result

    def _error(self, found: np.ndarray) -> Error:
        if not np.isfinite(found).all():
            at = _index(~np.isfinite(found))
            raise Mismatch(f"gives {found[at]} instead of {self.expected[at]:.6g} at {at}")
        allowed, bound = self.bound.largest * _scale(self.expected), self.bound.nmse
        if self.activations != "f32":  # half a code, and what decides a tie
            allowed = allowed + 0.5 * _code(self.expected, self.activations)
            bound = max(bound, _ratio((allowed**2).sum(), (self.expected**2).sum()))
        error = np.abs(found - self.expected)
        nmse = _ratio((error**2).sum(), (self.expected**2).sum())
        wrong = error > allowed
        if wrong.any():
            at = np.unravel_index(np.argmax(np.where(wrong, error, 0)), error.shape)
            raise Mismatch(f"gives {found[at]:.9g} instead of {self.expected[at]:.9g} at {_tuple(at)} (an error of up "
                           f"to {allowed[at]:.3g} is allowed), NMSE {nmse:.2g}")
        if nmse > bound:
            raise Mismatch(f"has an NMSE of {nmse:.2g}, allowed is {bound:.2g}")
        with np.errstate(divide="ignore", invalid="ignore"):
            share = np.where(error > 0, error / allowed, 0.0)
        return Error(float(nmse), float(bound), float(share.max()))


@dataclass(frozen=True)
class Error:
    """How far an output is from its twin: its ``nmse`` and the ``bound`` of that; ``share``: the largest error of an
    element over what is allowed for it."""

    nmse: float
    bound: float
    share: float

    @property
    def closeness(self) -> float:
        """1 at the bound."""
        return self.nmse / self.bound if self.bound else 0.0


def _scale(expected: np.ndarray) -> np.ndarray:
    rms = np.sqrt((expected**2).mean(axis=-1, keepdims=True))
    return np.maximum(np.abs(expected), rms)


def _code(expected: np.ndarray, activations: str) -> np.ndarray:
    """The distance of neighbouring codes where each element is stored."""
    *outer, width = expected.shape
    groups = -(-width // GROUP)
    padded = np.zeros((*outer, groups * GROUP))
    padded[..., :width] = np.abs(expected)
    top = padded.reshape(*outer, groups, GROUP).max(-1)
    return np.repeat(top / LARGEST_CODE[activations], GROUP, axis=-1)[..., :width]


def _check_sums(records: np.ndarray, activations: str) -> None:
    """The words behind the scale, which follow from the codes."""
    planes = PLANES[activations]
    for plane in range(planes):
        words = np.ascontiguousarray(records[..., plane * CODE_WORDS:(plane + 1) * CODE_WORDS])
        sums = words.view(np.int8).sum(axis=-1, dtype=np.int32)
        if not np.array_equal(records[..., record_words(activations) - planes + plane], -Q4_ZERO * sums):
            raise Mismatch("encodes activations with sums that are not those of their codes")


def _ratio(error: float, norm: float) -> float:
    return error / norm if norm else error


def _index(wrong: np.ndarray) -> tuple[int, ...]:
    """The first true element."""
    return _tuple(np.unravel_index(np.argmax(wrong), wrong.shape))


def _tuple(index: tuple[np.integer, ...]) -> tuple[int, ...]:
    return tuple(int(i) for i in index)


def _first(wrong: np.ndarray, written: Written) -> str:
    return f"the first at {_index(wrong)} of {written.dtype} {list(written.shape)}"
