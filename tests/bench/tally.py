"""The job that measures an engine and nothing else: per user a state of 1,500 bytes, per event a record of some 600 bytes.

State and record follow from the user's events and their order, so that whoever does the job must arrive at the same bytes.
Nothing in them compresses well. Imports nothing of ours: the peers run it too.
"""

from __future__ import annotations

import os
import struct
import time
from hashlib import shake_128
from pathlib import Path
from zlib import crc32

STATE_BYTES = 1_500
SHOWN = 250  # bytes of the state that are in the record, in hexadecimal

_HEADER = struct.Struct("<II")  # events so far; a checksum over their ids


def advance(state: bytes | None, user: str, event_id: str) -> bytes:
    """Return a user's state after one more event."""
    identity = event_id.encode()
    if state is None:
        state = _HEADER.pack(0, 0) + shake_128(user.encode()).digest(STATE_BYTES - _HEADER.size)
    count, checksum = _HEADER.unpack_from(state)
    head = _HEADER.pack(count + 1, crc32(identity, checksum)) + identity
    return head + state[_HEADER.size : STATE_BYTES - len(identity)]


def answer(user: str, event_id: str, state: bytes) -> bytes:
    """Return the record that answers an event, JSON."""
    count, checksum = _HEADER.unpack_from(state)
    shown = state[_HEADER.size : _HEADER.size + SHOWN].hex()
    return f'{{"event_id":"{event_id}","user_id":"{user}","count":{count},"checksum":{checksum},"shown":"{shown}"}}'.encode()


class Start:
    """Writes down when the first event came to the job, the processor time spent until then, and by which process.

    It is the moment from which a run is timed, for all engines alike.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._said = False

    def __call__(self) -> None:
        """Call it at each event, or at the first one of a batch."""
        if not self._said:
            self._said = True
            self._path.write_text(f"{time.time()} {time.process_time()} {os.getpid()}")
