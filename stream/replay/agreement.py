"""Does the replay say what the worker said? Recommendation by recommendation, and if not, whether late events explain it.

A worker answers in the order in which events reach it; a replay in the order in which they happened. Where the two orders differ, an
answer was given without something that had happened before it, or with something that had not happened yet. The worker's order is read
off its own output: it stamps recommendations as it produces them, and within one millisecond it went by event time.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b
from typing import Any, NamedTuple

import msgspec
import numpy as np

from stream.engine.checkpoint import Output
from stream.engine.reader import KafkaRecord
from stream.events import Trigger


class _Item(msgspec.Struct):
    item_id: str


class _Answer(msgspec.Struct):
    trigger: Trigger
    items: list[_Item]


class _Published(NamedTuple):
    produced: int  # ms
    whole: bytes
    list: bytes


Place = tuple[str, int, int]
_answer = msgspec.json.Decoder(_Answer)


class Agreement:
    """What was published, to be compared with what the replay says.

    Args:
        published: records of the topic of recommendations.
        topic: its name.
    """

    def __init__(self, published: Iterable[KafkaRecord], topic: str) -> None:
        self._topic = topic
        self._published: dict[Place, _Published] = {}
        self._repeats = 0
        self._order: list[Place] = []  # of the replay
        self._same: list[bool] = []
        self._same_list: list[bool] = []
        self._unanswered = 0
        for record in published:
            if record.value is not None:
                place, whole, items = _digests(record.value)
                self._repeats += place in self._published
                self._published.setdefault(place, _Published(record.timestamp, whole, items))

    def take(self, outputs: Iterable[Output]) -> None:
        """Compare the recommendations among a batch's outputs."""
        for output in outputs:
            if output.topic != self._topic or output.value is None:
                continue
            place, whole, items = _digests(output.value)
            known = self._published.get(place)
            if known is None:
                self._unanswered += 1
                continue
            self._order.append(place)
            self._same.append(known.whole == whole)
            self._same_list.append(known.list == items)

    def findings(self) -> dict[str, Any]:
        """Return the counts, and what they mean in a sentence."""
        same, same_list = np.array(self._same, np.bool_), np.array(self._same_list, np.bool_)
        produced = np.array([self._published[place].produced for place in self._order], np.int64)
        disturbed, after = _disturbed(produced)
        different = ~same
        counts = {
            "the same, byte for byte": int(same.sum()),
            "different, and events reached the worker in another order than they happened": int((different & disturbed).sum()),
            "different, after such an event": int((different & ~disturbed & after).sum()),
            "different for another reason": int((different & ~after & ~disturbed).sum()),
            "of the different: the same items in the same order": int((different & same_list).sum()),
            "seen by the worker out of order": int(disturbed.sum()),
            "published more than once": self._repeats,
            "not published": self._unanswered,
            "published, but not replayed": len(self._published) - len(self._order),
        }
        return {"compared": len(same), "counts": counts, "sentence": _sentence(counts, len(same))}


def _disturbed(produced: np.ndarray[Any, np.dtype[np.int64]]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return which answers were given out of order, and which were given after the first such one.

    Args:
        produced: when the worker produced each answer, ms, in the order of the replay.
    """
    n = len(produced)
    order = np.lexsort((np.arange(n), produced))  # places in the replay, in the order of the worker
    seen = np.maximum.accumulate(order) if n else order
    unseen = np.minimum.accumulate(order[::-1])[::-1] if n else order
    out_of_order = (order < seen) | (order > unseen)  # knew something later; did not know something earlier
    disturbed = np.zeros(n, np.bool_)
    disturbed[order] = out_of_order
    after = np.zeros(n, np.bool_)
    after[order] = np.logical_or.accumulate(out_of_order) if n else out_of_order
    return disturbed, after


def _sentence(counts: dict[str, int], compared: int) -> str:
    same, *different = list(counts.values())[:4]
    if not compared:
        return "Nothing that was published belongs to what was replayed."
    if same == compared:
        return f"All {compared:,} published recommendations are what the replay says, byte for byte."
    unexplained = different[2]
    reason = "all where events reached the worker late" if not unexplained else f"{unexplained:,} of them without a late event"
    return f"{same:,} of {compared:,} published recommendations are what the replay says; {compared - same:,} differ, {reason}."


def _digests(value: bytes) -> tuple[Place, bytes, bytes]:
    answer = _answer.decode(value)
    trigger = answer.trigger
    items = "\0".join(item.item_id for item in answer.items)
    return (
        (trigger.topic, trigger.partition, trigger.offset),
        blake2b(value, digest_size=12).digest(),
        blake2b(items.encode(), digest_size=12).digest(),
    )
