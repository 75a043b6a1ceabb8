"""What training a drift detector promises: it finds planted changes, publishes nothing where there are none, and repeats itself."""

import json
import shutil
from pathlib import Path
from random import Random

import numpy as np
import pytest
from numpy.typing import NDArray
from rich.console import Console

from model_export import drift
from model_export.cuts import cut
from model_export.data import DataError, Source
from model_export.drift import SMOOTHING, raised, thresholds
from model_export.drift_network import WARM_UP
from model_export.options import Options, TrainingError
from model_export.splices import AGES, LENGTH, Splicer, co_behaviour, histories
from model_export.verify import verify
from stream.encoder import read_manifest
from stream.learned_drift import DRIFT_FILE, VECTORS_FILE

WORDS = [["garden hose", "hose reel"], ["red shoe", "running shoes"], ["war game", "space game"], ["coffee grinder", "coffee"]]
EACH = 12  # items of an interest
QUIET = Console(quiet=True)


def write_log(folder: Path, *, interests: bool, users: int = 100) -> Path:
    """Users who each keep to one interest, or, as the scrambled twin, to none: their clicks shuffled among all users."""
    chance = Random(4)
    folder.mkdir()
    items = [
        {"item_id": f"{interest}-{number}", "title": f"{words[number % 2]} {number}"}
        for interest, words in enumerate(WORDS)
        for number in range(EACH)
    ]
    clicked = [f"{user % len(WORDS)}-{chance.randrange(EACH)}" for _ in range(80) for user in range(users)]
    if not interests:
        chance.shuffle(clicked)
    clicks = [
        {"event_id": f"e{n}", "user_id": f"u{n % users}", "item_id": item, "timestamp": 1_700_000_000_000 + n * 1000}
        for n, item in enumerate(clicked)
    ]
    for name, rows in (("items", items), ("clicks", clicks)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def options(runs: Path, **changes: object) -> Options:
    return Options.model_validate({"runs": runs, "epochs": 6, "batch_size": 16, "tracker": "none", "progress": False, **changes})


def train(model: Path, data: Path, folder: Path, **changes: object) -> Path:
    shutil.copytree(model, folder / "model")
    drift.train(Source(data), folder / "model", options(folder / "runs", **changes), QUIET)
    return folder / "model"


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_log(tmp_path_factory.mktemp("planted") / "data", interests=True)


@pytest.fixture(scope="module")
def trained(tiny_model: Path, planted: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tiny_model, planted, tmp_path_factory.mktemp("trained"))


def test_planted_changes_are_found_by_users_not_learned_from(trained: Path, tiny_model: Path) -> None:
    manifest = verify(trained)
    assert manifest.drift is not None
    assert manifest.drift.metrics["detected"] > 0.8
    assert manifest.drift.metrics["delay"] < 15
    assert manifest.version == read_manifest(tiny_model).version
    card = (trained / "README.md").read_text()
    assert card.count("## Drift") == 1
    assert "Changes are splices, not real ones" in card


def test_where_nobody_has_interests_nothing_is_published(tiny_model: Path, tmp_path: Path) -> None:
    data = write_log(tmp_path / "data", interests=False)
    with pytest.raises(TrainingError, match=r"gate: .* of the changes were found"):
        train(tiny_model, data, tmp_path)
    assert read_manifest(tmp_path / "model").drift is None
    assert not (tmp_path / "model" / DRIFT_FILE).exists()


def test_equal_seeds_give_equal_files_and_others_do_not(tiny_model: Path, planted: Path, trained: Path, tmp_path: Path) -> None:
    again, other = (train(tiny_model, planted, tmp_path / str(seed), seed=seed) for seed in (0, 1))
    for name in (DRIFT_FILE, VECTORS_FILE):
        assert (again / name).read_bytes() == (trained / name).read_bytes()
        assert (other / name).read_bytes() != (trained / name).read_bytes()
    assert read_manifest(again) == read_manifest(trained)


def test_training_anew_replaces_the_detector_and_its_section(trained: Path, planted: Path, tmp_path: Path) -> None:
    model = train(trained, planted, tmp_path, epochs=5)
    manifest = verify(model)
    assert manifest.drift is not None
    assert manifest.drift.options["epochs"] == 5
    assert (model / "README.md").read_text().count("## Drift") == 1


def test_too_few_users_with_long_histories_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    data = write_log(tmp_path / "data", interests=True, users=20)
    with pytest.raises(DataError, match="20 users have 60 searches and clicks or more"):
        train(tiny_model, data, tmp_path)


def test_options_for_encoders_are_refused(tiny_model: Path, planted: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="for encoders"):
        train(tiny_model, planted, tmp_path, method="lora")


def test_nobody_is_both_learned_from_and_held_out_and_who_is_depends_on_the_id_alone(planted: Path, tmp_path: Path) -> None:
    found = histories(Source(planted).read())
    assert not set(found.learned) & set(found.held_out)
    fewer = histories(Source(write_log(tmp_path / "data", interests=True, users=80)).read())
    assert set(fewer.held_out) == {f"u{n}" for n in range(80)} & set(found.held_out)


def test_a_splice_is_one_users_history_followed_by_that_of_another_taste(planted: Path) -> None:
    found = histories(Source(planted).read())
    users = list(found.learned.values())
    splicer = Splicer(users, co_behaviour(found.learned, len(found.texts), 8, seed=0))
    changed = 0
    for number in range(200):
        example = splicer.example(number, Random(number))
        length = int((example.ages >= 0).sum())
        interests = example.rows[:length] // EACH
        if example.change is None:
            assert len(set(interests.tolist())) == 1
            assert set(example.ages[:length].tolist()) == {len(AGES)}
            continue
        changed += 1
        assert len(set(interests[: example.change].tolist())) == len(set(interests[example.change :].tolist())) == 1
        assert interests[0] != interests[-1]
        assert (example.ages[: example.change] == len(AGES)).all()
        ago = np.arange(1, length - example.change + 1)
        assert example.ages[example.change : length].tolist() == [int((a > AGES).sum()) for a in ago]
        assert (example.ages[length:] == -1).all()
    assert 80 < changed < 160


def test_a_history_is_cut_where_a_change_is_more_likely_than_none() -> None:
    def chances(change: int | None, length: int = 120) -> NDArray[np.float64]:
        """What a good detector says of a change: for some behaviours its age, then never again."""
        sure = np.full((length, len(AGES) + 1), 0.01)
        ages = [len(AGES) if change is None or n < change else int((n - change + 1 > AGES).sum()) for n in range(length)]
        sure[np.arange(length), ages] = 1.0 - 0.01 * len(AGES)
        return sure

    history = np.arange(150)
    pieces, cuts = cut([(history, chances(70)), (history, chances(None)), (history, chances(30)), (history[:120], chances(85))])
    assert cuts == 3
    ends = [(int(piece[0]), int(piece[-1]) + 1) for piece in pieces]
    expected = [(0, 70), (70, 150), (0, 150), (30, 150), (0, 85)]
    assert len(ends) == len(expected), "pieces too short to learn from are left out"
    assert np.abs(np.array(ends) - expected).max() <= 3


def test_the_alarm_is_the_lowest_that_keeps_the_rate_of_false_alarms() -> None:
    chance = np.random.default_rng(0)
    smoothed = chance.random((400, LENGTH)) * 0.3
    for place in range(1, LENGTH):
        smoothed[:, place] = SMOOTHING * smoothed[:, place - 1] + (1 - SMOOTHING) * smoothed[:, place]
    smoothed[:, : WARM_UP - 1] = 0.0
    lengths = np.full(400, LENGTH)
    alarm, shifted, every = thresholds(smoothed, lengths)
    judged = 400 * (LENGTH - WARM_UP + 1)
    assert every >= drift.EVERY
    assert raised(smoothed, alarm).sum() == pytest.approx(judged / every, abs=1)
    assert judged / raised(smoothed, alarm * 0.97).sum() < drift.EVERY
    assert judged / max(1, raised(smoothed, alarm, shifted).sum()) >= drift.RARER * drift.EVERY


def test_an_alarm_is_raised_once_until_it_is_calm_again() -> None:
    path = np.full((1, LENGTH), 0.01)
    path[0, 20:30], path[0, 30:35], path[0, 35:40], path[0, 60:70] = 0.9, 0.6, 0.9, 0.9
    assert np.flatnonzero(raised(path, 0.8)[0]).tolist() == [20, 60]
