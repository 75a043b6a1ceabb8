"""`driftstream demo`, as somebody who has just cloned the repository runs it."""

import json
import os
import subprocess
import sys
from pathlib import Path


def test_the_demo_answers_every_event_and_ends_with_one_line_of_json(model_folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "recommendations.jsonl"
    done = subprocess.run(
        [sys.executable, "-m", "stream", "demo", "--limit", "300", "--json", "--model", model_folder, "--output", output],
        env={name: value for name, value in os.environ.items() if not name.startswith("DRIFTSTREAM_")},
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    result = json.loads(done.stdout.splitlines()[-1])
    assert set(result) == {
        "events",
        "recommendations",
        "drift_events",
        "dead_letters",
        "seconds",
        "events_per_second",
        "model",
        "provider",
    }
    assert (result["events"], result["recommendations"], result["dead_letters"]) == (300, 300, 0)
    assert result["seconds"] > 0
    assert result["events_per_second"] > 0
    answers = [json.loads(line) for line in output.read_text().splitlines()]
    assert len({answer["recommendation_id"] for answer in answers}) == 300
    assert {answer["model"] for answer in answers} == {result["model"]}


def test_the_demo_without_a_model_says_how_to_make_one(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "stream", "demo", "--model", tmp_path],
        env={name: value for name, value in os.environ.items() if not name.startswith("DRIFTSTREAM_")},
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert b"model-export export" in done.stderr
