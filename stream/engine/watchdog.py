"""A worker that makes no progress ends, with a reason, instead of hanging: whoever supervises it can start another one."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic

log = logging.getLogger("driftstream.watchdog")

EXIT_STATUS = 70  # EX_SOFTWARE of sysexits.h


class Watchdog(threading.Thread):
    """A thread of its own, so that it works while the event loop or the disk is stuck.

    Args:
        limit: seconds that anything expected may take without progress.
    """

    def __init__(self, limit: float) -> None:
        super().__init__(name="watchdog", daemon=True)
        self._limit = limit
        self._since: dict[str, float] = {}

    def expect(self, what: str) -> None:
        """Say that something has begun that must make progress."""
        self._since[what] = monotonic()

    def progress(self) -> None:
        """Say that what is expected goes on."""
        for what in tuple(self._since):
            self._since[what] = monotonic()

    def done(self, what: str) -> None:
        """Say that it has come to its end, or will not."""
        self._since.pop(what, None)

    def end_within(self, seconds: float, status: int = EXIT_STATUS) -> None:
        """End the process after so long at the latest: Faust's own stopping may hang, and nothing more is at stake."""
        timer = threading.Timer(seconds, self._end, [status])
        timer.daemon = True
        timer.start()

    @contextmanager
    def expecting(self, what: str) -> Iterator[None]:
        """Expect something for the length of a block."""
        self.expect(what)
        try:
            yield
        finally:
            self.done(what)

    def run(self) -> None:
        """Look every now and then; end the process where something is overdue."""
        pause = threading.Event()
        while not pause.wait(min(1.0, self._limit / 4)):
            for what, since in tuple(self._since.items()):
                if monotonic() - since > self._limit:
                    log.critical("The worker stops: %s made no progress for %g s (engine.stuck_after_s)", what, self._limit)
                    self._end()

    @staticmethod
    def _end(status: int = EXIT_STATUS) -> None:
        logging.shutdown()
        os._exit(status)
