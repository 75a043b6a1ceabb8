"""Workers that are killed, come and go; a supervisor starts again what has ended, as Kubernetes or systemd would."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path

MOST_ENDS = 40
WORKER = (sys.executable, "-m", "stream", "worker")


class Workers:
    """Workers of one group, each with a state folder and a log of its own.

    Args:
        folder: for states and logs.
        environment: settings of all workers, by the names of the environment.

    Attributes:
        ended_by_themselves: how often the supervisor found a worker gone that nobody had killed.
    """

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self._folder = folder
        self._environment = {
            name: value for name, value in os.environ.items() if not name.startswith("DRIFTSTREAM_")
        } | environment
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._lock = threading.Lock()
        self._made = 0
        self.ended_by_themselves = 0
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def names(self) -> list[str]:
        """The workers that are to run."""
        return sorted(self._processes)

    def add(self) -> str:
        """Start one more."""
        with self._lock:
            name = f"worker-{self._made}"
            self._made += 1
            self._start(name)
            return name

    def remove(self, name: str) -> None:
        """Ask one to stop, wait until it has, and do not start it again."""
        with self._lock:
            process = self._processes.pop(name)
        _end(process)

    def kill(self, name: str, *, lose_disk: bool = False) -> None:
        """SIGKILL one and start it again, on an empty disk where it is lost."""
        with self._lock:
            process = self._processes[name]
            process.kill()
            process.wait()
            if lose_disk:
                shutil.rmtree(self._folder / name, ignore_errors=True)
            self._start(name)

    def supervise(self) -> None:
        """Start again what has ended.

        Raises:
            AssertionError: they end more often than a worker with a reason would.
        """
        assert self.ended_by_themselves <= MOST_ENDS, f"workers keep ending; see the logs in {self._folder}"
        with self._lock:
            for name, process in list(self._processes.items()):
                if process.poll() is not None:
                    self.ended_by_themselves += 1
                    self._start(name)

    def stop(self) -> None:
        """Ask all to stop, and wait until they have."""
        with self._lock:
            processes, self._processes = self._processes, {}
        for process in processes.values():
            process.send_signal(signal.SIGTERM)
        for process in processes.values():
            _end(process)

    def close(self) -> None:
        """Kill what still runs."""
        for process in self._processes.values():
            process.kill()
            process.wait()

    def rebalances(self) -> int:
        """How many generations of the group the workers have seen."""
        logs = "\n".join(log.read_text(errors="replace") for log in self._folder.glob("*.log"))
        return len(set(re.findall(r"generation id (\d+) app consumers id \1", logs)))

    def _start(self, name: str) -> None:
        environment = self._environment | {"DRIFTSTREAM_ENGINE__STATE_FOLDER": str(self._folder / name)}
        with (self._folder / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                WORKER, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )


def _end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        raise AssertionError("a worker did not stop within 60 s of a SIGTERM") from None
