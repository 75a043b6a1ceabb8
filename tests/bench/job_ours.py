"""The worker itself with the whole job; it only notes when its first batch begins.

python tests/bench/job_ours.py BROKER GROUP EVENTS_PREFIX OUTPUT_TOPIC PARTITIONS STATE_FOLDER START_FILE
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import tally
from job_settings import settings

from stream import worker
from stream.engine.checkpoint import Work
from stream.pipeline import Pipeline


def main() -> None:
    broker, group, events, output, partitions, folder, start = sys.argv[1:8]
    began, process = tally.Start(Path(start)), Pipeline.process

    def noted(self: Pipeline, *arguments: Any) -> Work:
        began()
        return process(self, *arguments)

    Pipeline.process = noted  # type: ignore[method-assign, assignment]
    worker.run(settings(broker, group, events, output, int(partitions), Path(folder)), "warning")


if __name__ == "__main__":
    main()
