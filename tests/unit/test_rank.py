from __future__ import annotations

import json
import shutil

import msgspec
import numpy as np
import pytest
import torch
from rich.console import Console

from model_export import rank
from model_export.data import DataError, Source, Span
from model_export.manifest import amend
from model_export.occasions import Examples, Occasions
from model_export.options import Options, TrainingError
from stream.decode import EARLIEST
from stream.encoder import Encoder, read_manifest
from stream.encoder.manifest import RankWeights, Training
from stream.knowledge import Knowledge
from stream.recommend.ranker import FEATURES, PROFILE, Ranker, learned
from stream.settings import Recommend, Settings
from tests.tiny_model import WORDS, write_model

T = 1_700_000_000_000
HOUR = 3_600_000
WEIGHTS = RankWeights(
    text_weight=1.0,
    coverage_weight=2.0,
    profile_weight=3.0,
    profile_shares=[0.5, 0.3, 0.2],
    popular_prior=4.0,
    similar_prior=5.0,
    query_prior=6.0,
    followed_prior=7.0,
    repeat=0.25,
    neighbour_sharpness=8.0,
)
QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("rank"))


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    """People ask for one thing and click on another: the text misleads, what others clicked does not."""
    folder = tmp_path_factory.mktemp("log")
    random = np.random.default_rng(1)
    items = [{"item_id": f"i{n}", "title": f"{word} {WORDS[n + 1]}"} for n, word in enumerate(WORDS[:15])]
    searches, clicks = [], []
    for n in range(400):
        asked = int(random.integers(15))
        event = {"user_id": f"u{n}", "query": str(items[asked]["title"]), "timestamp": T + n * HOUR}
        clicked = (asked + 5) % 15 if random.random() < 0.8 else int(random.integers(15))
        searches.append({**event, "event_id": f"s{n}"})
        clicks.append({**event, "event_id": f"c{n}", "item_id": f"i{clicked}", "timestamp": T + n * HOUR + 1000})
    for name, records in (("items", items), ("searches", searches), ("clicks", clicks)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return Source(folder)


def options(tmp_path, **changes) -> Options:
    return Options(runs=tmp_path / "runs", **changes).with_defaults(rank.DEFAULTS)


def test_what_is_learned_by_is_the_formula_that_the_worker_ranks_by():
    random = np.random.default_rng(0)
    features = random.random((len(FEATURES), 6, 9)).astype(np.float32)
    features[:3] *= random.random((3, 6, 9)) < 0.3
    profiles = random.random((3, 6, 9)).astype(np.float32)
    features[PROFILE] = np.einsum("k,kai->ai", WEIGHTS.profile_shares, profiles)
    examples = Examples(
        features,
        profiles,
        next_item=np.zeros(6, np.intp),
        after_click=np.array([False, True, True, False, True, True]),
        clicked=np.array([-1, 3, -1, -1, 8, 0]),
    )
    [part] = rank._batches(examples, 6, None)
    settings = learned(Recommend(), WEIGHTS, scales=3)
    ours = rank.log_probabilities(part, rank._of(settings, 3)).exp()
    worker = Ranker(settings).rank(features.astype(np.float64), np.ones(9, np.bool_), examples.after_click, examples.clicked)
    np.testing.assert_allclose(ours, worker.probabilities, rtol=1e-4, atol=1e-7)


def test_learning_turns_away_from_what_misleads(model, log, tmp_path):
    occasions = Occasions(log.read(), Encoder(model), Settings(), EARLIEST)
    start = Recommend(text_weight=8.0, coverage_weight=8.0)
    found = rank.learn(occasions, start, options(tmp_path, epochs=20), QUIET)
    assert found.coverage_weight < 0.8 * start.coverage_weight
    again = rank.learn(occasions, start, options(tmp_path, epochs=20), QUIET)
    assert found == again

    def mean_gain(settings: Recommend) -> float:
        [part] = rank._batches(occasions.examples(settings), 10_000, None)
        with torch.no_grad():
            return float(rank._objective(part, rank._of(settings, 3)))

    assert mean_gain(rank._with(start, found)) > mean_gain(start) + 0.01


def test_each_answer_is_paired_with_the_next_click_of_the_same_user(model, log):
    examples = Occasions(log.read(), Encoder(model), Settings(), EARLIEST).examples(Recommend())
    assert len(examples) == 400  # each search has its click; no click has another one after it
    assert not examples.after_click.any()


def test_nothing_is_learned_from_the_days_that_the_encoder_was_trained_on(model, log, tmp_path, monkeypatch):
    folder = tmp_path / "model"
    shutil.copytree(model, folder)

    def trained_until(event: int) -> None:
        training = Training(since=T, until=T + event * HOUR, metric="map@5", held_out={}, options={}, metrics={})
        amend(folder, lambda manifest: msgspec.structs.replace(manifest, training=training), "## Training")

    trained_until(400)
    with pytest.raises(DataError, match="learned from what came later"):
        rank.train(log, folder, options(tmp_path), QUIET)
    nothing = Source(log.folder, Span(until=T))
    with pytest.raises(DataError, match="no usable searches or clicks"):
        rank.train(nothing, folder, options(tmp_path), QUIET)
    trained_until(300)
    seen: list[Examples] = []

    def learn(occasions: Occasions, *_: object) -> RankWeights:
        seen.append(occasions.examples(Recommend()))
        return WEIGHTS

    monkeypatch.setattr(rank, "learn", learn)
    quality = iter([{"all": 0.5, "unseen": 0.5}, {"all": 0.6, "unseen": 0.6}])
    judged_from: list[int] = []
    monkeypatch.setattr(rank, "judge", lambda log, start, *_: judged_from.append(start) or next(quality))
    rank.train(log, folder, options(tmp_path), QUIET)
    # A search is at the full hour, its click a second later: 99 searches follow on the encoder's last hour.
    assert [len(examples) for examples in seen] == [79, 99]
    assert judged_from == [T + 380 * HOUR] * 2
    assert seen[1].features[FEATURES.index("popular")].min() > 0  # what came before is known all the same


def test_learned_weights_reach_the_worker_through_the_model_folder(model, log, tmp_path, monkeypatch):
    folder = tmp_path / "model"
    shutil.copytree(model, folder)
    monkeypatch.setattr(rank, "read_settings", lambda: Settings(recommend=Recommend(text_weight=20.0, coverage_weight=20.0)))
    manifest = rank.train(log, folder, options(tmp_path, epochs=10), QUIET)
    assert manifest.rank is not None
    assert manifest.version == read_manifest(model).version  # the vectors are the same
    assert "## Ranking" in (folder / "README.md").read_text()
    served = Knowledge(Settings(), Encoder(folder)).recommender
    assert served.settings.coverage_weight == manifest.rank.coverage_weight
    assert served.memory.queries.sharpness == manifest.rank.neighbour_sharpness


@pytest.mark.parametrize("after", [{"all": 0.5, "unseen": 0.6}, {"all": 0.6, "unseen": 0.49}])
def test_weights_that_are_not_better_on_what_follows_are_not_published(model, log, tmp_path, monkeypatch, after):
    folder = tmp_path / "model"
    shutil.copytree(model, folder)
    found = iter([{"all": 0.5, "unseen": 0.5}, after])
    monkeypatch.setattr(rank, "learn", lambda *_: WEIGHTS)
    monkeypatch.setattr(rank, "judge", lambda *_: next(found))
    with pytest.raises(TrainingError, match="gate"):
        rank.train(log, folder, options(tmp_path), QUIET)
    assert read_manifest(folder).rank is None


def test_a_weight_that_somebody_has_set_wins_over_the_learned_one():
    found = learned(Recommend(text_weight=12.0), WEIGHTS, scales=3)
    assert (found.text_weight, found.coverage_weight, found.neighbour_sharpness) == (12.0, 2.0, 8.0)
    assert learned(Recommend(), None, scales=3) == Recommend()


def test_weights_for_other_time_scales_than_the_profiles_are_refused():
    with pytest.raises(ValueError, match="3 time scales"):
        learned(Recommend(), WEIGHTS, scales=2)
