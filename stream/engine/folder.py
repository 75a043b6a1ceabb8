"""The state folder belongs to one worker of one group on one cluster, and says so."""

from __future__ import annotations

import fcntl
import uuid
from pathlib import Path
from typing import IO

import msgspec
import rocksdict

ADVICE = "Move it away: it is restored from the changelog"
LABEL = "driftstream.json"


class FolderError(Exception):
    """The state folder cannot be used; the message says what to do."""


class Label(msgspec.Struct, frozen=True, kw_only=True):
    """What a folder is the state of. `worker_id` is made once, and tells this folder's worker from the others of its group."""

    cluster: str
    group: str
    partitions: int
    worker_id: str


class StateFolder:
    """A state folder that this process has for itself until it ends.

    Args:
        path: made where it is missing.
        cluster: the id of the Kafka cluster.
        group: the consumer group.
        partitions: of the changelog.

    Attributes:
        worker_id: the same for as long as the folder lives.

    Raises:
        FolderError: it cannot be written, another worker uses it, it is the state of something else, or a database in it is damaged.
    """

    def __init__(self, path: Path, *, cluster: str, group: str, partitions: int) -> None:
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._file: IO[bytes] = (path / LABEL).open("a+b")
        except OSError as error:
            raise FolderError(f"{path} cannot be written ({error.strerror}). Set DRIFTSTREAM_ENGINE__STATE_FOLDER") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FolderError(
                f"another worker uses {path}. Give each worker of a machine its own: DRIFTSTREAM_ENGINE__STATE_FOLDER"
            ) from None
        self._file.seek(0)
        found = self._read(path, self._file.read())
        if found is None:
            found = Label(cluster=cluster, group=group, partitions=partitions, worker_id=uuid.uuid4().hex[:12])
            self._file.write(msgspec.json.encode(found))
            self._file.flush()
        for name, ours in (("cluster", cluster), ("group", group), ("partitions", partitions)):
            if (theirs := getattr(found, name)) != ours:
                raise FolderError(
                    f"{path} is the state of {name} {theirs}, not of {name} {ours}. Set DRIFTSTREAM_ENGINE__STATE_FOLDER to another "
                    "folder; states are restored from the changelog"
                )
        self.worker_id = found.worker_id
        for database in sorted(path.rglob("*.db")):
            try:
                rocksdict.Rdict(
                    str(database), rocksdict.Options(raw_mode=True), access_type=rocksdict.AccessType.read_only()
                ).close()
            except Exception as error:  # rocksdict raises plain ones
                raise FolderError(f"{database} is damaged ({error}). {ADVICE}") from error

    @staticmethod
    def _read(path: Path, data: bytes) -> Label | None:
        if not data:
            return None
        try:
            return msgspec.json.decode(data, type=Label)
        except msgspec.MsgspecError as error:
            raise FolderError(
                f"{path / LABEL} is damaged ({error}). Move {path} away: it is restored from the changelog"
            ) from error

    def close(self) -> None:
        """Let another worker have it."""
        self._file.close()
