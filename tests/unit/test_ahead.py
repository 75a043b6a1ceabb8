from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from stream.encoder import Encoder
from stream.encoder.ahead import Ahead


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_what_was_announced_is_encoded_when_it_is_wanted(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = Encoder(tiny_model, device="cpu")
    expected = encoder._run(encoder._tokenize(["red hose", "garden"]))
    Ahead(encoder).want(["garden", "red hose", "garden"])
    wait_until(lambda: "garden" in encoder and "red hose" in encoder)
    monkeypatch.setattr(encoder, "_run", lambda _: pytest.fail("something had to be encoded"))
    assert np.array_equal(encoder.encode(["red hose", "garden"]), expected)


def test_what_is_known_already_is_not_encoded_again(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = Encoder(tiny_model, device="cpu")
    encoder.encode(["garden"])
    asked: list[str] = []
    encode = encoder.encode
    monkeypatch.setattr(encoder, "encode", lambda texts: asked.extend(texts) or encode(texts))
    Ahead(encoder).want(["garden", "red hose"])
    wait_until(lambda: "red hose" in encoder)
    assert asked == ["red hose"]


def test_a_text_that_cannot_be_encoded_is_left_to_whoever_wants_it(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    encoder = Encoder(tiny_model, device="cpu")
    tried, run = threading.Event(), encoder._run

    def crash_once(_: object) -> np.ndarray:
        monkeypatch.setattr(encoder, "_run", run)
        tried.set()
        raise RuntimeError("out of memory")

    monkeypatch.setattr(encoder, "_run", crash_once)
    ahead = Ahead(encoder)
    with caplog.at_level(logging.WARNING):
        ahead.want(["red hose"])
        assert tried.wait(10)
        ahead.want(["garden"])
        wait_until(lambda: "garden" in encoder)
    assert "out of memory" in caplog.text
    assert encoder.encode(["red hose"]).shape == (1, encoder.dimension)
