"""What every worker knows alike: the catalogue, and what was learned across users.

Both are topics that each worker reads in full. `items` holds the catalogue. On `memory` every worker publishes, in each checkpoint,
the sums that its events contributed; whoever reads them merges them. A worker's own contributions count at once, those of others as
soon as they are read: the memories of two workers differ by what is in flight, about a checkpoint's length. A user's own profile
does not depend on any of this.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterable
from time import monotonic

import msgspec
import rocksdict

from stream.decode import Record, Reject, decode_item
from stream.encoder import Encoder
from stream.engine.broadcast import Broadcast, BroadcastRecord
from stream.engine.checkpoint import Output
from stream.events import Item
from stream.publish import dead_letter
from stream.recommend.catalogue import Catalogue, item_text
from stream.recommend.memory import Memory
from stream.recommend.recommender import Recommender
from stream.settings import Settings

log = logging.getLogger("driftstream.knowledge")

SAVE_EVERY = 1.0  # seconds between two writes of what was learned
PATIENCE = 60.0  # seconds that a broker may stay silent while a topic is read for the first time
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
        self.catalogue = Catalogue(encoder.dimension)
        self.memory = Memory(settings.recommend)
        self.recommender = Recommender(self.catalogue, self.memory, settings.recommend)
        self._instance = uuid.uuid4().hex.encode()
        self._in_flight = 0  # own contributions that are published but not read back yet
        self._rejects: list[Output] = []
        self._judged: dict[int, int] = {}  # by partition: rejects before these offsets are in the dead letters already
        self._saved_at = monotonic()

    def load(self) -> None:
        """Read both topics to their end; what was learned before comes from disk.

        Raises:
            KafkaException, TimeoutError: a topic cannot be read.
        """
        client, topics = self.settings.broker.librdkafka(), self.settings.topics
        folder = self.settings.engine.state_folder / "knowledge"
        folder.parent.mkdir(parents=True, exist_ok=True)
        self._disk = rocksdict.Rdict(str(folder), rocksdict.Options(raw_mode=True))
        positions = msgspec.msgpack.decode(self._disk.get(POSITIONS) or b"\x80", type=dict[str, dict[int, int]])
        self.memory.load((key, value) for key, value in self._disk.items() if key != POSITIONS)
        self._judged = positions.get("items", {})
        self._items = Broadcast(client, topics.name("items"))
        self._rejects = self.put_items(self._items.read_to_end(PATIENCE))
        self._log = Broadcast(client, topics.name("memory"), positions.get("memory"))
        for record in self._log.read_to_end(PATIENCE):
            self._merge(record)
        log.info("%d items in the catalogue", len(self.catalogue))

    def refresh(self) -> list[Output]:
        """Take in what has arrived on both topics; return the items that could not be used, for the dead letters."""
        rejects = self._rejects + self.put_items(self._items.poll())
        self._rejects = []
        for record in self._log.poll():
            self._merge(record)
        return rejects

    def put_items(self, records: Iterable[Record]) -> list[Output]:
        """Bring the catalogue up to date with records of `items`; return those that cannot be used, for the dead letters."""
        rejects: list[Output] = []
        newest: dict[str, Item | None] = {}
        for record in records:
            found = decode_item(record)
            if isinstance(found, Reject):
                if record.offset >= self._judged.get(record.partition, 0):
                    rejects.append(dead_letter(self.settings.topics, found))
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
        return rejects

    def contribution(self) -> Output | None:
        """Return what was learned here since the last call, to be published with the results it came from."""
        delta = self.memory.take_delta()
        if delta is None:
            return None
        self._in_flight += 1
        return Output(self.settings.topics.name("memory"), self._instance, delta)

    def save(self) -> None:
        """Write what was learned to disk, together with the offsets that it stands for.

        Only at a moment when all own contributions have been read back: then the memory is exactly the sum of the topic up to
        those offsets, and each contribution counts once after a restart.
        """
        if self._in_flight or monotonic() - self._saved_at < SAVE_EVERY:
            return
        self._saved_at = monotonic()
        batch = rocksdict.WriteBatch(raw_mode=True)
        for key, value in self.memory.export_changes().items():
            if value is None:
                batch.delete(key)
            else:
                batch.put(key, value)
        positions = {"items": self._items.offsets, "memory": self._log.offsets}
        batch.put(POSITIONS, msgspec.msgpack.encode(positions))
        self._disk.write(batch)

    def _merge(self, record: BroadcastRecord) -> None:
        if record.key == self._instance:
            self._in_flight -= 1
        elif record.value is not None:
            try:
                self.memory.merge(record.value)
            except ValueError as error:
                log.warning("%s offset %d is left out: %s", record.topic, record.offset, error)
