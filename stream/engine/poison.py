"""An event at which a step crashes must not stop the others: it is looked for, tried again, and set aside."""

from __future__ import annotations

import logging

from stream.decode import Reject
from stream.engine.intake import Batch

log = logging.getLogger("driftstream.poison")

# So many in a row, with none between them that went well, are no accident of the data: the model or a setting is at fault, and
# setting everything aside would not help anybody.
MOST_IN_A_ROW = 20


class PoisonError(Exception):
    """Every event crashes; the message names the first fault."""


class Poison:
    """Cuts a batch that crashed until the event at fault is alone.

    A batch may be cut anywhere without changing a result, so the halves are simply answered one after the other. A single event is
    tried once more, since the fault may have passed. Then it becomes a reject, which goes to the dead letters.
    """

    def __init__(self) -> None:
        self._tried: tuple[str, int, int] | None = None
        self._in_a_row = 0

    def parts(self, batch: Batch, error: Exception) -> list[Batch]:
        """Return what is to be answered instead of a batch that crashed.

        Args:
            batch: nothing of it has been kept.
            error: what it crashed with.

        Raises:
            PoisonError: all events crash.
        """
        entries = batch.entries
        if len(entries) > 1:
            log.warning("A step crashed on %d events (%r): they are tried in halves", len(entries), error)
            middle = len(entries) // 2
            return [Batch(entries[:middle]), Batch(entries[middle:])]
        record = entries[0].record
        place = record.topic, record.partition, record.offset
        if isinstance(entries[0], Reject):
            raise PoisonError(f"{record.topic}[{record.partition}] offset {record.offset} cannot even be set aside") from error
        if self._tried != place:
            self._tried = place
            return [batch]
        self._in_a_row += 1
        if self._in_a_row > MOST_IN_A_ROW:
            raise PoisonError(
                f"{MOST_IN_A_ROW} events in a row crashed: the fault is not theirs. The last one: {error!r}"
            ) from error
        log.error("%s[%d] offset %d crashes a step and goes to the dead letters", *place, exc_info=error)
        return [Batch([Reject(f"pipeline: {type(error).__name__}: {error}", record)])]

    def passed(self, batch: Batch) -> None:
        """Say that a batch was answered."""
        if not all(isinstance(entry, Reject) for entry in batch.entries):
            self._in_a_row = 0
