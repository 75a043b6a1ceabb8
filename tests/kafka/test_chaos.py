"""The short form of `make chaos`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from broker import KafkaBroker
from chaos import Plan, broken_promises, run

SHORT = Plan(events=12_000, users=300, kills=4, restarts=1, resizes=2, pause=3.0)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("guarantee", ["exactly_once", "at_least_once"])
def test_whatever_dies_everything_is_as_if_it_had_not(
    guarantee: str, tiny_model: Path, tmp_path: Path, new_kafka: Callable[..., KafkaBroker]
) -> None:
    result = run(SHORT, 4, guarantee, tiny_model, tmp_path, new_kafka(tmp_path / "kafka"))
    assert result["inputs"] == SHORT.events
    assert broken_promises(result) == []
