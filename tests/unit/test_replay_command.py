"""`driftstream replay` as a whole, over files and a tiny model: the same input gives the same bytes, and variants are told apart."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from test_replay_source import T0, click, search, write
from typer.testing import CliRunner, Result

from stream.cli import app
from stream.drift import STATES
from stream.encoder import Encoder
from stream.replay import run as replay_run
from stream.replay.freshness import HOUR_MS
from stream.replay.report import render
from stream.replay.run import Options
from stream.replay.source import read_folder
from stream.replay.variant import Variant
from stream.settings import Model, Recommend, Settings, Topics

USERS = [f"user-{n}" for n in range(40)]
WORDS = ["garden hose", "red shoes", "blue shoe", "space game", "coffee grinder", "war game"]


@pytest.fixture
def folder(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Events of forty users, most of whom click what they searched for."""
    rng = np.random.default_rng(1)
    items = [{"item_id": f"i{n}", "title": word, "category": word.split()[-1]} for n, word in enumerate(WORDS)]
    searches, clicks = [], []
    for n in range(600):
        user, wanted = USERS[rng.integers(len(USERS))], int(rng.integers(len(WORDS)))
        searches.append(search(n, user, WORDS[wanted], 400_000 * n))
        clicks.append(click(n, user, f"i{wanted if rng.random() < 0.8 else rng.integers(len(WORDS))}", 400_000 * n + 1000))
    data = tmp_path / "data"
    data.mkdir()
    write(data / "items.jsonl", items)
    write(data / "searches.jsonl.gz", searches)
    write(data / "clicks.jsonl", clicks)
    monkeypatch.setenv("DRIFTSTREAM_MODEL__FOLDER", str(tiny_model))
    monkeypatch.chdir(tmp_path)
    return data


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["replay", *map(str, arguments)])


def findings(*arguments: object) -> Any:
    done = run(*arguments, "--json", "--skip", 100)
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout.splitlines()[-1])


def test_the_same_input_gives_the_same_bytes(folder: Path) -> None:
    outputs, found = [], []
    for n in range(2):
        file = folder / f"recs-{n}.jsonl"
        result = findings("--data", folder, "--output", file)
        del result["seconds"], result["events_per_second"]
        outputs.append(file.read_bytes())
        found.append(result)
    assert outputs[0] == outputs[1]
    assert len(outputs[0].splitlines()) == 1200
    assert found[0] == found[1]
    for result in found:
        result["journeys"] = []
    assert render(found[0], "library") == render(found[1], "library")


def test_at_n_times_event_time_the_answers_are_the_same(folder: Path) -> None:
    fast, slow = folder / "fast.jsonl", folder / "slow.jsonl"
    findings("--data", folder, "--output", fast)
    result = findings("--data", folder, "--output", slow, "--speed", 200_000)
    assert result["seconds"] >= 400 * 599 / 200_000
    assert fast.read_bytes() == slow.read_bytes()


def test_identical_variants_are_called_identical_and_a_worse_one_worse(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "same.toml").write_text("")
    (tmp_path / "worse.toml").write_text("[recommend]\ntext_weight = -20.0\ncoverage_weight = -20.0\nquery_prior = 1000.0\n")
    variants = [
        f"--variant={name}={tmp_path / file}.toml" for name, file in (("now", "same"), ("twin", "same"), ("worse", "worse"))
    ]
    found = findings("--data", folder, *variants, "--output", folder / "recs.jsonl")
    twin, worse = found["comparisons"]["twin"], found["comparisons"]["worse"]
    assert all(value == {"estimate": 0, "low": 0, "high": 0} for value in twin["measures"].values())
    assert twin["verdict"].startswith("twin ranks every click as now does")
    assert worse["measures"]["map@5"]["high"] < 0
    assert worse["verdict"].startswith("worse is worse than now: MAP@5 -")
    assert sum(worse["ab"]["users"]) == 40
    assert (folder / "recs.now.jsonl").read_bytes() == (folder / "recs.twin.jsonl").read_bytes()
    assert (folder / "recs.now.jsonl").read_bytes() != (folder / "recs.worse.jsonl").read_bytes()
    expected = found["variants"]["worse"]["totals"]["map@5"] - found["variants"]["now"]["totals"]["map@5"]
    assert worse["measures"]["map@5"]["estimate"] == pytest.approx(expected, abs=2e-6)


@pytest.mark.parametrize("emit", ["every-event", "latest-per-user"])
def test_what_is_judged_is_what_is_published(folder: Path, tmp_path: Path, emit: Any) -> None:
    settings, output = Settings(recommend=Recommend(emit=emit)), tmp_path / "recommendations.jsonl"
    encoders, options = replay_run.Encoders([settings]), Options(output=output, skip=0)
    ledger = replay_run.run(read_folder(folder, Topics()), {"now": settings}, encoders, options, quiet=True).ledgers["now"]
    published = [json.loads(line) for line in output.read_bytes().splitlines()]
    users = list(ledger.user_numbers)
    assert len(published) == len(ledger.items) >= len(USERS)
    for row, told in enumerate(published):
        assert told["timestamp"] == ledger.times[row]
        assert told["user_id"] == users[ledger.users[row]]
        assert told["trigger"]["event_id"] == ledger.event_ids[row]
        assert told["drift"] == {"score": ledger.scores[row], "state": STATES[ledger.drift_states[row]]}
        listed = [ledger.item_ids[item] for item in ledger.items[row] if item >= 0]
        assert [item["item_id"] for item in told["items"]] == listed
        assert len(listed) == len(WORDS)


def test_ablations_replay_stale_profiles_and_single_time_scales(folder: Path) -> None:
    found = findings("--data", folder, "--ablate")
    assert found["ablations"] == ["short-term only", "long-term only", "profile hourly", "profile daily"]
    assert found["variants"]["short-term only"]["settings"]["profile"]["half_lives_days"] == [0.25]
    assert set(found["comparisons"]) == set(found["ablations"])


def test_a_profile_brought_up_to_date_hourly_is_the_one_of_the_last_full_hour(folder: Path) -> None:
    recording = read_folder(folder, Topics(), limit=400)
    encoder = Encoder(Settings().model.folder)
    users = [(event.behaviour.user_id, event.time) for event in recording.events]

    def profiles(period: int | None) -> list[Any]:
        variant = Variant(Settings(), encoder, recording.items, period)
        room = variant.room(len(users))
        return [occasion.profile for occasion in variant.follow(recording.entries, room)[1].whole(room)]

    fresh = list(zip(users, profiles(None), strict=True))
    for (user, time), profile in zip(users, profiles(HOUR_MS), strict=True):
        before = [p for (u, t), p in fresh if u == user and t // HOUR_MS < time // HOUR_MS]
        assert (profile is None) if not before else np.array_equal(profile, before[-1])
    assert any(profile is not None for profile in profiles(HOUR_MS))


def test_a_model_of_several_settings_is_loaded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[dict[str, Any]] = []
    monkeypatch.setattr(replay_run, "Encoder", lambda folder, **options: loaded.append(options) or Encoder(folder, **options))
    one, other = Settings(), Settings(recommend=Recommend(count=3))
    apart = Settings(model=Model(variant="fp32"))
    encoders = replay_run.Encoders([one, other, apart])
    assert encoders[one] is encoders[other] is not encoders[apart]
    assert [options["variant"] for options in loaded] == ["auto", "fp32"]


def test_parquet_gives_the_same_answers_as_json_lines(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "parquet"
    other.mkdir()
    for name in ("items", "clicks"):
        rows = [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), other / f"{name}.parquet")
    write(
        other / "searches.jsonl",
        [json.loads(e.record.value or b"") for e in read_folder(folder, Topics()).events if "searches" in e.record.topic],
    )
    findings("--data", folder, "--output", folder / "a.jsonl")
    findings("--data", other, "--output", folder / "b.jsonl")
    assert (folder / "a.jsonl").read_bytes() == (folder / "b.jsonl").read_bytes()


def test_one_user_alone_proves_nothing_and_the_report_says_so(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "one.toml").write_text("")
    data = tmp_path / "alone"
    data.mkdir()
    (data / "items.jsonl").write_bytes((folder / "items.jsonl").read_bytes())
    write(data / "clicks.jsonl", [click(n, "ada", f"i{n % 4}", 1000 * n) for n in range(200)])
    found = findings("--data", data, *(f"--variant={name}={tmp_path / 'one.toml'}" for name in ("now", "twin")))
    assert "cannot be compared by the clicks of one user" in found["comparisons"]["twin"]["verdict"]
    page = render(found | {"journeys": []}, "library")
    assert "cannot be compared" in page
    alone = findings("--data", data)
    headline = render(alone | {"journeys": []}, "library").split("<h1>")[1].split("</h1>")[0]
    assert headline.endswith(f"MAP@5 is {alone['variants']['settings']['totals']['map@5']:.4f}.")


def test_nothing_is_told_of_users_who_were_erased(folder: Path) -> None:
    report = folder / "report.html"
    for erased in (USERS[:0], USERS[:-1]):
        write(folder / "erasures.jsonl", [{"user_id": user, "timestamp": T0 + 400_000 * 590} for user in erased])
        assert findings("--data", folder, "--report", report)["recording"]["erasures"] == len(erased)
        told = set(re.findall(r"user-\d+", report.read_text()))
        assert told == {USERS[-1]} if erased else told & set(USERS[:-1])


def test_times_choose_events_by_event_time(folder: Path) -> None:
    found = findings("--data", folder, "--from", T0 + 400_000 * 100, "--to", "2023-11-17T00:00:00Z")
    assert found["recording"]["from"] == T0 + 400_000 * 100
    assert found["recording"]["to"] < 1_700_179_200_000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--variant", "no-file"], "name=settings.toml"),
        (["--variant", "a=missing.toml"], "missing.toml cannot be read"),
        (["--variant", "a=bad.toml"], "recommend.count"),
        (["--skip", "5000"], "all 600 clicks are warm-up"),
        (["--from", "2023-11-17"], "no zone"),
        (["--offsets", "clicks/0"], "BEGIN:END"),
        (["--agreement"], "leave out --data"),
        (["--truth", "missing.jsonl"], "missing.jsonl"),
    ],
)
def test_a_mistake_is_named(folder: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    (tmp_path / "bad.toml").write_text("[recommend]\ncount = 0\n")
    done = run("--data", folder, *arguments)
    assert done.exit_code == 1
    assert message in done.output.replace("\n", " ")
