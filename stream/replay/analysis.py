"""From ledgers to findings: each variant's measures, how it compares with the first one, and what that means in a sentence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from stream.replay.clicks import Clicks, Flags
from stream.replay.compare import Interval, arm, by_user, difference_of_arms, intervals
from stream.replay.ledger import Ledger
from stream.replay.measures import MEASURES, PRIMARY, Floats, curve, gains, totals

LEVEL = 0.95
LEAST_USERS = 30  # in a slice, under which nothing is said about a difference


def assess(clicks: Clicks, ledger: Ledger, parts: Mapping[str, Flags], seed: int) -> dict[str, Any]:
    """Return one variant's measures: totals with the primary's interval, by slice, and over time."""
    one = intervals(*_sums(clicks, clicks.judged, [gains(PRIMARY, ledger.ranks)]), level=LEVEL, seed=seed)[0]
    return {
        "totals": totals(ledger, clicks.judged),
        "interval": one._asdict(),
        "slices": {name: totals(ledger, flags) for name, flags in parts.items()},
        "curve": curve(clicks, ledger.ranks, PRIMARY),
    }


def compare(
    clicks: Clicks, base: Ledger, other: Ledger, parts: Mapping[str, Flags], comparisons: int, seed: int
) -> dict[str, Any]:
    """Return how much better the other variant is than the base, measure by measure and slice by slice.

    Both answered the same events, so differences are taken click by click. The primary measure's interval is widened for the
    number of variants compared and those of the slices for the number of slices (Bonferroni), so that the chance of any false
    claim stays at 1 − `LEVEL`.
    """
    differences = [gains(measure, other.ranks) - gains(measure, base.ranks) for measure in MEASURES]
    measured = intervals(*_sums(clicks, clicks.judged, differences), level=1 - (1 - LEVEL) / comparisons, seed=seed)
    primary = differences[MEASURES.index(PRIMARY)]
    users = {name: len(np.unique(clicks.users[flags])) for name, flags in parts.items()}
    left_out = ("all", "hour:")  # hours are shown, but are no answer to “for whom”
    judged = {name: flags for name, flags in parts.items() if not name.startswith(left_out) and users[name] >= LEAST_USERS}
    by_slice: dict[str, Any] = {}
    if judged:
        chosen = np.array(list(judged.values()))
        sums = by_user(clicks.users, np.where(chosen, primary, 0.0))
        counts = by_user(clicks.users, chosen.astype(np.float64))
        level = 1 - (1 - LEVEL) / (comparisons * len(judged))
        found = intervals(sums, counts, level=level, seed=seed)
        by_slice = {name: interval._asdict() | {"users": users[name]} for name, interval in zip(judged, found, strict=True)}
    return {
        "users": users["all"],
        "measures": {measure: interval._asdict() for measure, interval in zip(MEASURES, measured, strict=True)},
        "slices": by_slice,
        "ab": split(clicks, base, other, seed),
    }


def split(clicks: Clicks, base: Ledger, other: Ledger, seed: int) -> dict[str, Any]:
    """Return what an A/B test would have found: each user is judged by one of the two only, chosen by a hash of user_id and seed.

    Half the users see each, and users differ more than variants do: the interval is wider than the paired one.
    """
    arms = np.array([arm(event.behaviour.user_id, 2, str(seed)) for event in clicks.events])
    groups = [
        _sums(clicks, clicks.judged & (arms == number), [gains(PRIMARY, ledger.ranks)])
        for number, ledger in enumerate((base, other))
    ]
    found = difference_of_arms(*groups, level=LEVEL, seed=seed)[0]
    return found._asdict() | {"users": [group[0].shape[1] for group in groups]}


def _sums(clicks: Clicks, chosen: Flags, values: list[Floats]) -> tuple[Floats, Floats]:
    """Return users' sums of the values over the chosen clicks, and their numbers of clicks, each (values, users)."""
    columns = np.array([value[chosen] for value in values])
    return by_user(clicks.users[chosen], columns), by_user(clicks.users[chosen], np.ones_like(columns))


def verdict(name: str, base: str, found: Mapping[str, Any]) -> str:
    """Say in a sentence whether a variant is better than the base, by how much, for whom, and how sure that is."""
    measure = _interval(found["measures"][PRIMARY])
    range_ = f"{measure.low:+.4f} to {measure.high:+.4f}, {found['users']:,} users"
    title = PRIMARY.upper()
    if found["users"] < 2:
        return f"{name} and {base} cannot be compared by the clicks of one user: {title} {measure.estimate:+.4f}."
    if not measure.clear:
        same = measure.low == measure.high == 0.0
        text = f"{name} ranks every click as {base} does" if same else f"No difference between {name} and {base} can be shown"
        return f"{text}: {title} {measure.estimate:+.4f} ({range_})."
    word = "better" if measure.estimate > 0 else "worse"
    clear = {part: _interval(value) for part, value in found["slices"].items() if _interval(value).clear}
    against = [part for part, value in clear.items() if (value.estimate > 0) != (measure.estimate > 0)]
    most = max(clear, key=lambda part: abs(clear[part].estimate), default=None)
    text = f"{name} is {word} than {base}: {title} {measure.estimate:+.4f} ({range_})"
    if most is not None and most not in against:
        text += f", most for “{most}” ({clear[most].estimate:+.4f})"
    if against:
        text += f", but the other way round for {', '.join(f'“{part}”' for part in against[:3])}"
    return f"{text}."


def _interval(found: Mapping[str, float]) -> Interval:
    return Interval(found["estimate"], found["low"], found["high"])
