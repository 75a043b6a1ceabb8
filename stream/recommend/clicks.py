"""Decayed clicks on some items, and those of a block of events laid out for one pass of array arithmetic."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

PERIOD = 32  # half-lives after which the unit of the sums is renewed, by a power of two, which is exact


Packed = tuple[int, int, bytes, bytes]
"""The period, how many items, their numbers (int32) and their masses (float64)."""


class Clicks:
    """The decayed clicks on some items: S(T) = Σ 2^(−(T − tᵢ)/h) over the clicks at tᵢ.

    They are kept in the unit of a period of 32 half-lives: `masses` are S as of the period's beginning, so that a click
    adds 2^((t − beginning)/h) and nothing else need be touched (forward decay, Cormode et al. 2009).

    Attributes:
        period: whose beginning the masses are of.
        numbers: the items, by a number that their owner gives them, in the order of their first click.
        masses: S of each.
    """

    __slots__ = ("_packed", "_place", "masses", "numbers", "period")

    def __init__(self, period: int) -> None:
        self.period = period
        self.numbers = array("i")
        self.masses = array("d")
        self._place: dict[int, int] = {}
        self._packed: Packed | None = None

    def __len__(self) -> int:
        """Return the number of items."""
        return len(self.numbers)

    def __iter__(self) -> Iterator[tuple[int, float]]:
        """Yield each item's number and mass."""
        return zip(self.numbers, self.masses, strict=True)

    def add(self, number: int, period: int, mass: float) -> None:
        """Add clicks on an item, as of the beginning of a period."""
        if period != self.period:
            if period > self.period:
                down = PERIOD * (self.period - period)
                self.masses = array("d", [math.ldexp(known, down) for known in self.masses])
                self.period = period
            else:
                mass = math.ldexp(mass, PERIOD * (period - self.period))
        self._packed = None
        place = self._place.get(number)
        if place is None:
            self._place[number] = len(self.numbers)
            self.numbers.append(number)
            self.masses.append(mass)
        else:
            self.masses[place] += mass

    def replace(self, pairs: Iterable[tuple[int, float]]) -> None:
        """Hold these items and masses instead."""
        self.numbers, self.masses, self._place, self._packed = array("i"), array("d"), {}, None
        for number, mass in pairs:
            self.add(number, self.period, mass)

    def packed(self) -> Packed:
        """Return the items and their masses as they are now."""
        if self._packed is None:
            self._packed = self.period, len(self.numbers), self.numbers.tobytes(), self.masses.tobytes()
        return self._packed


class Terms(NamedTuple):
    """Some clicks and what each of them counts: the sum is Σ weight · S, with S as of `age`, a time in half-lives."""

    weights: array[float]
    clicks: Sequence[Clicks]
    age: float


def decay(period: int, age: float) -> float:
    """Return the factor by which the masses of a period fade to those as of a time in half-lives; at most 1.

    It would be more only for an event from before the period, to which the sums would be without bounds.
    """
    return math.exp2(min(0.0, PERIOD * period - age))


class Evidence:
    """Terms by line, as they were when they were taken down, whatever is learned afterwards."""

    def __init__(self) -> None:
        self._lines = array("q")
        self._counts = array("q")
        self._ages = array("d")
        self._weights = array("d")
        self._packed: list[Packed] = []

    def add(self, line: int, terms: Terms) -> None:
        """Take down some terms under a line's number, as they are now."""
        weights, clicks, age = terms
        if not clicks:
            return
        self._lines.append(line)
        self._counts.append(len(weights))
        self._ages.append(age)
        self._weights.extend(weights)
        self._packed += [some.packed() for some in clicks]

    def flat(self) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.float64]]:
        """Return line, item number and mass of each click, in the order of `add`: (clicks,) each."""
        periods, lengths, parts, sums = zip(*self._packed, strict=True) if self._packed else ((), (), (), ())
        sizes = np.array(lengths, np.intp)
        numbers, masses = np.frombuffer(b"".join(parts), np.int32), np.frombuffer(b"".join(sums))
        counts = np.frombuffer(self._counts, np.int64)
        lines = np.repeat(np.frombuffer(self._lines, np.int64), counts)
        # As `decay` does.
        factors = np.exp2(np.minimum(0.0, PERIOD * np.array(periods, np.float64) - np.repeat(np.frombuffer(self._ages), counts)))
        factors *= np.frombuffer(self._weights)
        return np.repeat(lines, sizes), numbers, masses * np.repeat(factors, sizes)
