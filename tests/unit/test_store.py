"""The states' store while one batch is on its way to the disk and the next is computed already, and the memory of its databases."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from time import monotonic, sleep

import pytest
import rocksdict
from faust.stores.rocksdb import Store
from full_disk import largest_file
from hypothesis import given
from hypothesis import strategies as st

from stream.engine.store import StateStore, StoreError, TableOptions

USERS = ["ada", "bea", "cem"]
batches = st.lists(
    st.dictionaries(st.sampled_from(USERS), st.one_of(st.none(), st.binary(min_size=1, max_size=3)), min_size=1), max_size=12
)


class Disk:
    """What `StateStore` uses of a Faust table's store."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._database: rocksdict.Rdict | None = None

    def _db_for_partition(self, partition: int) -> rocksdict.Rdict:
        if self._database is None:
            self._database = rocksdict.Rdict(str(self._folder), rocksdict.Options(raw_mode=True))
        return self._database

    def partition_path(self, partition: int) -> Path:
        return self._folder


def encoded(states: Mapping[str, bytes | None]) -> dict[bytes, bytes | None]:
    return {user.encode(): state for user, state in states.items()}


@given(batches=batches, written_before=st.lists(st.booleans(), min_size=12, max_size=12), capacity=st.integers(0, 3))
def test_a_batch_sees_what_the_ones_before_led_to_wherever_that_is_by_then(tmp_path_factory, batches, written_before, capacity):
    store: StateStore[bytes] = StateStore(Disk(tmp_path_factory.mktemp("s")), bytes, capacity=capacity)  # type: ignore[arg-type]
    expected: dict[str, bytes | None] = {}
    writing: dict[str, bytes | None] | None = None
    for batch, early in zip(batches, written_before, strict=False):
        if early and writing is not None:
            store.write(0, encoded(writing), 1)
        for user in USERS:
            assert store.get(0, user) == expected.get(user)
        store.keep(0, batch)
        if not early and writing is not None:
            store.write(0, encoded(writing), 1)
        store.advance()
        writing = batch
        expected |= batch
    for user in USERS:
        assert store.get(0, user) == expected.get(user)


def test_what_came_to_nothing_is_forgotten(tmp_path: Path) -> None:
    store: StateStore[bytes] = StateStore(Disk(tmp_path), bytes, capacity=10)  # type: ignore[arg-type]
    store.keep(0, {"ada": b"1"})
    store.advance()
    store.write(0, {b"ada": b"1"}, 1)
    store.keep(0, {"ada": b"2", "bea": b"1"})
    store.advance()
    store.keep(0, {"ada": b"3"})
    assert store.get(0, "ada") == b"2"
    store.forget()
    assert (store.get(0, "ada"), store.get(0, "bea")) == (b"1", None)


def test_the_databases_of_all_partitions_together_keep_to_their_memory(tmp_path: Path) -> None:
    memory, chance = 16 * 2**20, random.Random(7)
    options = TableOptions(memory)
    databases = [options.open(tmp_path / str(partition)) for partition in range(3)]
    held = []
    for number in range(6_000):  # 60 MB
        for database in databases:
            database[b"%d" % number] = chance.randbytes(10_000 // 3)
        sleep(0.0005)  # RocksDB writes files meanwhile, also where other processes want the processor
        held.append(sum(database.property_int_value("rocksdb.cur-size-all-mem-tables") or 0 for database in databases))
    assert memory / 8 < max(held) < memory
    for database in databases:
        for number in range(6_000):
            assert database.get(b"%d" % number) is not None
    used = {database.property_int_value("rocksdb.block-cache-usage") for database in databases}
    assert len(used) == 1  # one cache
    assert memory / 4 < used.pop() <= memory * 1.1
    for database in databases:
        database.close()


def test_files_are_merged_when_there_are_eight(tmp_path: Path) -> None:
    database = TableOptions(2**26).open(tmp_path / "0")

    def flush(times: int) -> None:
        for _ in range(times):
            database[b"ada"] = b"state"
            database.flush()

    def files() -> int:
        return int(database.property_value("rocksdb.num-files-at-level0") or -1)

    flush(7)
    sleep(0.5)  # a merge would have begun
    assert files() == 7
    flush(1)
    deadline = monotonic() + 20
    while files() and monotonic() < deadline:
        sleep(0.05)
    assert files() == 0
    database.close()


def test_a_full_disk_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    disk = Disk(tmp_path)
    store: StateStore[bytes] = StateStore(disk, bytes, capacity=0)  # type: ignore[arg-type]
    store.write(0, {b"ada": bytes(range(256)) * 8_000}, 1)
    with largest_file(16_384), pytest.raises(StoreError, match=f"{tmp_path} cannot be written: .*Make room on the disk"):
        with suppress(Exception):
            disk._db_for_partition(0).flush()  # as RocksDB does by itself, later, when memory is short
        store.write(0, {b"ada": b"2"}, 2)


DYING = """
import os, sys
from pathlib import Path
from test_store import USERS, Disk
from stream.engine.store import StateStore
disk, written, in_files, how = Disk(Path(sys.argv[1])), int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
store = StateStore(disk, bytes, capacity=0)
for number in range(1, written + 1):
    store.write(0, {user.encode(): b"%d" % number for user in USERS}, number)
    if number == in_files:
        disk._db_for_partition(0).flush()
if how:
    os.kill(os.getpid(), how)
"""


@pytest.mark.parametrize(("how", "stands_for"), [(signal.SIGKILL, 3), (0, 5)])
def test_after_a_crash_states_and_their_offset_are_of_one_earlier_moment(tmp_path: Path, how: int, stands_for: int) -> None:
    arguments = [str(tmp_path), "5", "3", str(int(how))]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    ended = subprocess.run([sys.executable, "-c", DYING, *arguments], env=environment, check=False)
    assert ended.returncode == -how
    database = Disk(tmp_path)._db_for_partition(0)
    assert database.get(Store.offset_key) == b"%d" % stands_for
    assert {database.get(user.encode()) for user in USERS} == {b"%d" % stands_for}
