"""What a worker sets for its whole process."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAPS = """
import ctypes, io, sys, threading
from stream.worker import share_heaps
if sys.argv[1] == "shared":
    share_heaps()
held, all_hold = [], threading.Barrier(7)
def hold():
    held.append(bytearray(50_000))
    all_hold.wait()
threads = [threading.Thread(target=hold) for _ in range(6)]
[thread.start() for thread in threads]
all_hold.wait()
libc = ctypes.CDLL(None)
libc.malloc_info(0, ctypes.c_void_p.in_dll(libc, "stdout"))
libc.fflush(None)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="of glibc")
def test_threads_share_two_heaps() -> None:
    heaps = {
        how: subprocess.run([sys.executable, "-c", HEAPS, how], capture_output=True, text=True, check=True).stdout.count(
            "<heap nr"
        )
        for how in ("shared", "left")
    }
    assert heaps["shared"] <= 2 < heaps["left"]
