"""The first thing that a command does with a broker: find out whether there is one."""

from __future__ import annotations

import pytest

from stream.connection import Broker, BrokerError, connect


def test_where_no_broker_answers_the_error_is_all_that_is_said(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("stream.connection.ANSWER_SECONDS", 0.5)
    with pytest.raises(BrokerError, match=r"no broker answers at 127\.0\.0\.1:1 .* check DRIFTSTREAM_BROKER__SERVERS"):
        connect(Broker(servers="127.0.0.1:1").librdkafka())
    assert capfd.readouterr().err == ""
