"""Users' states in the Faust table's RocksDB, with the ones in use kept decoded in memory.

Faust opens, closes and recovers the table's databases, one per partition. Writing is ours: one WriteBatch per checkpoint and partition,
in which the changelog offset that it stands for is stored too, so that a restart replays exactly what is missing. RocksDB keeps no log
of its own (`UNLOGGED`): after a crash a database stands where its files end, states and offset alike, and the changelog has the rest.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Generic, TypeVar

import rocksdict
from faust.stores.rocksdb import RocksDBOptions, Store

from stream.engine.folder import ADVICE

S = TypeVar("S")

# Of every write to a table's databases: after a crash a write that is logged would come back alone.
UNLOGGED = rocksdict.WriteOptions()
UNLOGGED.disable_wal = True
LEVEL_0_FILES = 8  # are merged at once with level 1, all of which is written anew each time: half as often as with RocksDB's 4
BLOOM_BITS = 10  # a key; 1 % of the lookups of absent keys then read a block in vain


class StoreError(Exception):
    """The state folder cannot be read or written; the message says what to do."""

    @classmethod
    def unwritten(cls, path: object, error: Exception, topic: str) -> StoreError:
        """Return what to raise where RocksDB could not write; `topic` has what is missing then."""
        return cls(
            f"{path} cannot be written: {error}. Nothing is lost: what is missing there is read from the {topic} after a restart. Make "
            "room on the disk, or set DRIFTSTREAM_ENGINE__STATE_FOLDER to another one"
        )


def erasing(options: rocksdict.Options) -> rocksdict.Options:
    """Let RocksDB compact every file with a deletion in it at once, so that what was deleted is gone from the disk.

    By itself it keeps the old bytes until enough has been written over them, which may be never. Add a `flush` after deleting: a
    deletion comes into a file, and out of a write-ahead log, only then. What may be left is the key alone: of a deletion in a file
    that overlaps with no other, until `compact`; and in the MANIFEST, where a file begins or ends with it, until the next start.
    """
    options.add_compact_on_deletion_collector_factory(128, 1, 0.0)  # one deletion among 128 entries is enough
    return options


def compact(database: rocksdict.Rdict) -> None:
    """Write a whole database anew, without anything that was deleted. Meant for small ones."""
    options = rocksdict.CompactOptions()
    options.set_bottommost_level_compaction(rocksdict.BottommostLevelCompaction.force())
    database.compact_range(None, None, options)


class TableOptions(RocksDBOptions):
    """Faust's way to open a table's databases, with `erasing`, and with one bound for the memory of them all.

    By itself each database, one a partition, has a block cache of its own and up to three memtables of 64 MiB.

    Args:
        memory: bytes; memtables may take four fifths of them, and the block cache has what they leave.
    """

    def __init__(self, memory: int) -> None:
        super().__init__(use_rocksdict=True)
        self._cache = rocksdict.Cache(memory)
        self._memtables = rocksdict.WriteBufferManager.new_write_buffer_manager_with_cache(memory * 4 // 5, False, self._cache)

    def as_options(self) -> rocksdict.Options:
        """Return RocksDB's options."""
        options = erasing(super().as_options())
        blocks = rocksdict.BlockBasedOptions()
        blocks.set_bloom_filter(BLOOM_BITS, block_based=False)
        blocks.set_block_cache(self._cache)
        options.set_block_based_table_factory(blocks)
        options.set_write_buffer_manager(self._memtables)
        options.set_level_zero_file_num_compaction_trigger(LEVEL_0_FILES)
        return options


class StateStore(Generic[S]):
    """Reads through to RocksDB; states read or written lately stay decoded.

    While one batch is written, the next is computed already, and sees what the first leads to: `keep`, then `advance` when the
    batch before it is on disk, then `write`.

    Args:
        store: the Faust table's own store.
        decode: bytes to state; may raise for bytes that are none.
        capacity: decoded states to keep.
    """

    def __init__(self, store: Store, decode: Callable[[bytes], S], *, capacity: int) -> None:
        self._store = store
        # Recovery opens databases in a thread, Faust in the event loop. Twice at once is an error of RocksDB's.
        opened, one_at_a_time = store._db_for_partition, threading.Lock()

        def open_once(partition: int) -> rocksdict.Rdict:
            with one_at_a_time:
                return opened(partition)

        store._db_for_partition = open_once
        self._decode = decode
        self._capacity = capacity
        self._states: OrderedDict[tuple[int, str], S] = OrderedDict()
        self._kept: dict[tuple[int, str], S | None] = {}  # of the batch computed last
        self._writing: dict[tuple[int, str], S | None] = {}  # of the batch that is on its way to the disk; None is erased

    def get(self, partition: int, user_id: str) -> S | None:
        """Return a user's state, or None for one never seen. The caller may change it and must then `keep` it."""
        user = partition, user_id
        if user in self._writing:
            return self._writing[user]
        state = self._states.get(user)
        return self.peek(partition, user_id) if state is None else state

    def peek(self, partition: int, user_id: str) -> S | None:
        """Return what RocksDB holds of a user: a copy of its own, safe to read while batches go on.

        Raises:
            StoreError: the database cannot be read, or holds what is no state.
        """
        try:
            stored = self._store._db_for_partition(partition).get(user_id.encode())
            return None if stored is None else self._decode(stored)
        except Exception as error:  # rocksdict raises plain ones
            path = self._store.partition_path(partition)
            raise StoreError(f"a user's state in {path} cannot be read: {error}. If it is damaged: {ADVICE}") from error

    def keep(self, partition: int, states: Mapping[str, S | None]) -> None:
        """Keep the states that a batch leads to, None for one that is to be erased."""
        for user_id, state in states.items():
            self._kept[partition, user_id] = state

    def advance(self) -> None:
        """Say that the batch last kept goes to the disk now, and that the one before it is there."""
        for user, state in self._writing.items():
            if state is None:
                self._states.pop(user, None)
                continue
            self._states[user] = state
            self._states.move_to_end(user)
        while len(self._states) > self._capacity:
            self._states.popitem(last=False)
        self._writing, self._kept = self._kept, {}

    def write(self, partition: int, states: Mapping[bytes, bytes | None], changelog_offset: int) -> None:
        """Write encoded states and the offset of the last changelog record among them, atomically.

        Raises:
            StoreError: the disk is full, for example.
        """
        batch = rocksdict.WriteBatch(raw_mode=True)
        for key, value in states.items():
            if value is None:
                batch.delete(key)
            else:
                batch.put(key, value)
        batch.put(Store.offset_key, str(changelog_offset).encode())
        try:
            database = self._store._db_for_partition(partition)
            database.write(batch, UNLOGGED)
            if None in states.values():
                database.flush()
        except Exception as error:  # rocksdict raises plain ones
            raise StoreError.unwritten(self._store.partition_path(partition), error, "changelog") from error

    def forget(self) -> None:
        """Drop what is kept in memory: the partitions may belong to another worker now, or a batch came to nothing."""
        for states in (self._states, self._kept, self._writing):
            states.clear()
