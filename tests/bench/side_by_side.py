"""What the benchmarks share: runs that take turns, their medians, and the one line of JSON that each question ends in."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Sequence

ROUNDS = 5
GROWTH = 1 / 1.5  # the floor where ours is the large end of a range and theirs the small one: cost grows by 1.5 times at most


def parser(description: str | None) -> argparse.ArgumentParser:
    """Options that each benchmark has."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--rounds", type=int, default=ROUNDS, help="runs of each side")
    return made


def take_turns(rounds: int, *sides: Callable[[], float]) -> list[list[float]]:
    """Run each side once a round, one after the other, and return each side's results. Progress goes to standard error."""
    results: list[list[float]] = [[] for _ in sides]
    for number in range(rounds):
        for side, found in zip(sides, results, strict=True):
            found.append(side())
        print(f"round {number + 1}: {' '.join(f'{found[-1]:.5g}' for found in results)}", file=sys.stderr, flush=True)
    return results


def ratios(ours: Sequence[float], theirs: Sequence[float], *, more_is_better: bool) -> list[float]:
    """How many times better ours is, run by run."""
    return [a / b if more_is_better else b / a for a, b in zip(ours, theirs, strict=True)]


def report(
    question: str,
    ours: Sequence[float],
    theirs: Sequence[float],
    unit: str,
    floor: float,
    *,
    more_is_better: bool = True,
    **more: object,
) -> None:
    """Print the line: medians, and the lowest and highest of the rounds' ratios as their spread."""
    pairs = ratios(ours, theirs, more_is_better=more_is_better)
    line = {
        "question": question,
        "ours": _short(statistics.median(ours)),
        "theirs": _short(statistics.median(theirs)),
        "unit": unit,
        "ratio": _short(statistics.median(pairs)),
        "floor": floor,
        "spread": [_short(min(pairs)), _short(max(pairs))],
        "command": " ".join(["python", *sys.argv]),
        **more,
    }
    print(json.dumps(line), flush=True)


def _short(value: float) -> float:
    return float(f"{value:.4g}")
