"""What every worker knows alike: the catalogue, and what was learned across users.

Both are topics that each worker reads in full. `items` holds the catalogue. On `memory` every worker publishes, in each checkpoint,
the sums that its events contributed; whoever reads them merges them. A worker's own contributions count at once, those of others as
soon as they are read: the memories of two workers differ by what is in flight, about a checkpoint's length. A user's own profile
does not depend on any of this.
"""

from __future__ import annotations

import logging
import uuid
from collections import deque
from collections.abc import Iterable
from itertools import chain
from time import monotonic

import msgspec
import rocksdict

from stream.decode import Record, Reject, decode_item
from stream.encoder import Encoder
from stream.engine.broadcast import Broadcast
from stream.engine.checkpoint import Output
from stream.engine.reader import KafkaRecord
from stream.engine.store import StoreError, compact
from stream.events import Item
from stream.publish import dead_letter
from stream.recommend.catalogue import Catalogue, item_text
from stream.recommend.memory import Memory
from stream.recommend.ranker import learned
from stream.recommend.recommender import Recommender
from stream.settings import Settings

log = logging.getLogger("driftstream.knowledge")

SAVE_EVERY = 1.0  # seconds between two writes of what was learned
OVERDUE = 10.0  # seconds after which events wait for one, as in a backlog there is always something on its way
SETTLE = 1.0  # seconds that they wait at most
PATIENCE = 60.0  # seconds that a broker may stay silent while a topic is read for the first time
UNLEARN = b"unlearn"  # key of the records that every worker takes off, the one that wrote them too
POSITIONS = b"\0positions"  # where the topics were read to when the rest was written


class Knowledge:
    """Catalogue and memory, kept up to date with their topics.

    Attributes:
        catalogue: the items that can be recommended.
        memory: popularity and co-behaviour.
        recommender: answers with both.
    """

    def __init__(self, settings: Settings, encoder: Encoder) -> None:
        self.settings = settings
        self.encoder = encoder
        self.catalogue = Catalogue(encoder.dimension, settings.recommend.exact_items)
        self._rejects: list[Output] = []  # dead letters of items, to be published
        self._publishing: deque[list[Output]] = deque()  # those that batches on their way hold, one list a batch
        self._judged: dict[int, int] = {}  # by partition: rejects before these offsets are in the dead letters already
        self._begin()

    def _begin(self) -> None:
        """Know nothing of what was learned."""
        settings = learned(self.settings.recommend, self.encoder.manifest.rank, len(self.settings.profile.half_lives_days))
        self.memory = Memory(settings)
        self.recommender = Recommender(self.catalogue, self.memory, settings)
        self._instance = uuid.uuid4().hex.encode()
        self._in_flight = 0  # own contributions that are published but not read back yet
        self._rejects = [*chain.from_iterable(self._publishing), *self._rejects]
        self._publishing.clear()
        self._saved_at = monotonic()
        self._put_off_at: float | None = None  # when a save that was due could not be made

    def load(self) -> None:
        """Read both topics to their end; what was learned before comes from disk.

        Raises:
            KafkaException, TimeoutError: a topic cannot be read.
            StoreError: what is on disk cannot be read.
        """
        client, topics = self.settings.broker.librdkafka(), self.settings.topics
        folder = self.settings.engine.state_folder / "knowledge"
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._disk = rocksdict.Rdict(str(folder), rocksdict.Options(raw_mode=True))
        except Exception as error:  # rocksdict raises plain ones
            raise StoreError(
                f"{folder} cannot be opened: {error}. If it is damaged, move it away: what was learned is read from the topic again"
            ) from error
        self._judged = self._positions().get("items", {})
        self._items = Broadcast(client, topics.name("items"))
        self.put_items(self._items.read_to_end(PATIENCE))
        self._log = Broadcast(client, topics.name("memory"))
        self._load_memory()
        log.info("%d items in the catalogue", len(self.catalogue))

    def reload(self) -> None:
        """Forget what was learned from results that were not kept: go back to what is on disk and on the topic.

        Raises:
            KafkaException, TimeoutError: the topic cannot be read.
        """
        self._begin()
        self._load_memory()

    def _positions(self) -> dict[str, dict[int, int]]:
        return msgspec.msgpack.decode(self._disk.get(POSITIONS) or b"\x80", type=dict[str, dict[int, int]])

    def _load_memory(self) -> None:
        self.memory.load((key, value) for key, value in self._disk.items() if key != POSITIONS)
        self._log.rewind(self._positions().get("memory", {}))
        for record in self._log.read_to_end(PATIENCE):
            self._merge(record)

    def refresh(self) -> None:
        """Take in what has arrived on both topics."""
        self.put_items(self._items.poll())
        for record in self._log.poll():
            self._merge(record)

    def put_items(self, records: Iterable[Record]) -> None:
        """Bring the catalogue up to date with records of `items`; those of no use go to the dead letters."""
        newest: dict[str, Item | None] = {}
        for record in records:
            found = decode_item(record)
            if isinstance(found, Reject):
                if record.offset >= self._judged.get(record.partition, 0):
                    self._rejects.append(dead_letter(self.settings.topics, found))
            elif isinstance(found, str):
                newest[found] = None
            else:
                newest[found.item_id] = found
        items = [item for item in newest.values() if item is not None]
        for item, vector in zip(items, self.encoder.encode([item_text(item) for item in items]), strict=True):
            self.catalogue.put(item, vector)
        for item_id, change in newest.items():
            if change is None:
                self.catalogue.remove(item_id)
        self.catalogue.catch_up()  # not in the middle of the next answer

    def outputs(self) -> list[Output]:
        """Return what is to be published with the next results: what was learned, and dead letters for items of no use."""
        outputs, topic = list(self._rejects), self.settings.topics.name("memory")
        self._publishing.append(self._rejects)
        self._rejects = []
        if (delta := self.memory.take_delta()) is not None:
            self._in_flight += 1
            outputs.append(Output(topic, self._instance, delta))
        if (unlearned := self.memory.take_unlearned()) is not None:  # behind what it is taken off from
            outputs.append(Output(topic, UNLEARN, unlearned))
        return outputs

    def published(self) -> None:
        """Say that what `outputs` returned first, of what has not been said to be, is safe."""
        self._publishing.popleft()

    def overdue(self) -> bool:
        """Return whether saving has been put off for so long that a moment for it should be made: see `settle`."""
        return self._put_off_at is not None and monotonic() - self._put_off_at > OVERDUE

    def settle(self) -> None:
        """Wait until own contributions have been read back, and save. Meant for when all that was to be published is."""
        deadline = monotonic() + SETTLE
        while self._in_flight and monotonic() < deadline:
            for record in self._log.poll(0.01):
                self._merge(record)
        self._put_off_at = None
        self.save()

    def save(self) -> None:
        """Write what was learned to disk, together with the offsets that it stands for.

        Only at a moment when all that is to be published is, and own contributions have been read back. Then the memory is exactly
        the sum of the topic up to those offsets, and each contribution counts once after a restart.

        Raises:
            StoreError: the disk is full, for example.
        """
        now = monotonic()
        if now - self._saved_at < SAVE_EVERY:
            return
        if self._in_flight or self._rejects or any(self._publishing):
            self._put_off_at = self._put_off_at or now
            return
        self._saved_at, self._put_off_at = now, None
        batch = rocksdict.WriteBatch(raw_mode=True)
        changes = self.memory.export_changes()
        for key, value in changes.items():
            if value is None:
                batch.delete(key)
            else:
                batch.put(key, value)
        positions = {"items": self._items.offsets, "memory": self._log.offsets}
        batch.put(POSITIONS, msgspec.msgpack.encode(positions))
        try:
            self._disk.write(batch)
            if None in changes.values():
                compact(self._disk)  # a key is the text of a query, and a database of queries is small
        except Exception as error:  # rocksdict raises plain ones
            raise StoreError.unwritten(self._disk.path(), error, "memory topic") from error

    def _merge(self, record: KafkaRecord) -> None:
        if record.key == self._instance:
            self._in_flight -= 1
        elif record.value is not None:
            try:
                self.memory.merge(record.value)
            except ValueError as error:
                log.warning("%s offset %d is left out: %s", record.topic, record.offset, error)
