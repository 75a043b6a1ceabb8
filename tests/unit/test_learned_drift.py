"""What the learned detector promises in the worker: bits that no batch changes, and folders that are whole or refused."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_drift import add_detector

from model_export.verify import verify
from stream.decode import Event
from stream.encoder import Encoder, ModelFolderError, read_manifest
from stream.engine.intake import Batch
from stream.events import Click, DriftLevel, Item, Search
from stream.learned_drift import DRIFT_FILE, VECTORS_FILE, LearnedDrift
from stream.pipeline import Pipeline, Turn
from stream.recommend.catalogue import Catalogue, item_text
from stream.recommend.memory import Memory
from stream.recommend.recommender import Recommender
from stream.settings import Settings
from stream.state import UserState

TITLES = ["garden hose", "red shoe", "coffee grinder", "war game", "space game", "blue running shoes"]
ITEMS = [Item(item_id=str(number), title=title) for number, title in enumerate(TITLES)]


class Record:
    topic, partition, offset, timestamp, key, value = "clicks", 0, 0, 0, b"", b""


class States:
    def __init__(self) -> None:
        self.users: dict[str, UserState] = {}

    def get(self, partition: int, user_id: str) -> UserState | None:
        return self.users.get(user_id)

    def keep(self, partition: int, states: dict[str, UserState]) -> None:
        self.users.update(states)


class Watched(Pipeline):
    """The pipeline, with what it said of drift kept by user."""

    def __init__(self, folder: Path) -> None:
        encoder = Encoder(folder, device="cpu")
        catalogue = Catalogue(encoder.dimension)
        for item in ITEMS:
            catalogue.put(item, encoder.encode([item_text(item)])[0])
        worker = Settings()
        super().__init__(worker, encoder, Recommender(catalogue, Memory(worker.recommend), worker.recommend))

    def drift(self, turns: list[Turn]) -> None:
        super().drift(turns)
        for turn in turns:
            assert turn.drift is not None
            self.said.setdefault(turn.event.behaviour.user_id, []).append((turn.before, turn.drift))

    def run(self, events: list[Event], cuts: list[int], states: States | None = None) -> States:
        self.said: dict[str, list[tuple[str, DriftLevel]]] = {}
        states = states or States()
        ends = sorted({0, len(events), *(cut % (len(events) + 1) for cut in cuts)})
        for start, end in zip(ends, ends[1:], strict=False):
            self.process(Batch(events[start:end], {}), states)
        return states


@pytest.fixture(scope="module")
def folder(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return add_detector(tiny_model, tmp_path_factory.mktemp("drift") / "model", [("0", TITLES[0]), ("3", TITLES[3]), ("4", "x")])


@pytest.fixture(scope="module")
def pipeline(folder: Path) -> Watched:
    return Watched(folder)


def event(number: int, user: str, subject: int) -> Event:
    """A click on an item, or a search for one of the titles."""
    time = 1_700_000_000_000 + number * 60_000
    if subject < len(TITLES):
        click = Click(event_id=f"e{number}", user_id=user, item_id=str(subject), timestamp=time)
        return Event(time, click, Record())
    search = Search(event_id=f"e{number}", user_id=user, query=TITLES[subject % len(TITLES)], timestamp=time)
    return Event(time, search, Record())


behaviours = st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 2 * len(TITLES) - 1)), min_size=1, max_size=150)


@settings(max_examples=25, deadline=None)
@given(behaviours, st.lists(st.integers(0, 150), max_size=6))
def test_where_a_batch_ends_changes_no_bit_of_levels_and_states(pipeline: Watched, made: list, cuts: list[int]) -> None:
    events = [event(number, user, subject) for number, (user, subject) in enumerate(made)]
    whole = pipeline.run(events, [])
    said = pipeline.said
    cut = pipeline.run(events, cuts)
    assert pipeline.said == said
    assert {user: state.encode() for user, state in cut.users.items()} == {u: s.encode() for u, s in whole.users.items()}


@settings(max_examples=15, deadline=None)
@given(behaviours)
def test_a_user_is_judged_the_same_whoever_else_is_there(pipeline: Watched, made: list) -> None:
    events = [event(number, user, subject) for number, (user, subject) in enumerate(made)]
    pipeline.run(events, [])
    among_others = pipeline.said
    for user in among_others:
        pipeline.run([e for e in events if e.behaviour.user_id == user], [])
        assert pipeline.said == {user: among_others[user]}


def test_levels_move_and_pass_through_all_states(pipeline: Watched) -> None:
    """Else the tests above would compare constants."""
    pipeline.run([event(number, "a", number // 12 % len(TITLES)) for number in range(200)], [])
    levels = [level for _, level in pipeline.said["a"]]
    assert len({level.score for level in levels}) > 100
    assert {level.state for level in levels} == {"stable", "drifting", "shifted"}
    assert all(0.0 <= level.score <= 1.0 for level in levels)
    assert [before for before, _ in pipeline.said["a"]] == ["stable", *(level.state for level in levels[:-1])]


def test_a_duplicate_teaches_nothing(pipeline: Watched) -> None:
    events = [event(number, "a", number % 5) for number in range(40)]
    once = pipeline.run(events, []).users["a"].encode()
    level = pipeline.said["a"][-1][1]
    again = pipeline.run([*events, events[-1], events[20]], [7]).users["a"].encode()
    assert again == once
    assert [said for _, said in pipeline.said["a"][-2:]] == [level, level]


def test_an_item_is_known_by_id_and_title_together(pipeline: Watched) -> None:
    """Item 4 has another title than the one that was learned from: it is another shop's."""
    centre = pipeline.catalogue.centre
    detector = pipeline.detector
    for item, known in [("3", True), ("1", False), ("4", False)]:
        state = pipeline.run([event(0, "a", int(item))], []).users["a"].drift
        assert isinstance(state, LearnedDrift)
        by_text = (pipeline.catalogue.vector(item) - centre) @ detector._projection
        assert (abs(state.sums[0] - by_text).max() > 0.1) == known


def test_a_state_of_another_detector_is_rebuilt_from_the_window(tiny_model: Path, pipeline: Watched) -> None:
    events = [event(number, "a", number % 12) for number in range(40)]
    fresh = pipeline.run(events, []).users["a"]
    old = Watched(tiny_model)
    states = old.run(events[:-1], [])
    profile = states.users["a"].profile.sums.copy()
    assert states.users["a"].drift.detector == 0
    pipeline.run(events[-1:], [], states)
    moved = states.users["a"]
    assert isinstance(moved.drift, LearnedDrift)
    assert isinstance(fresh.drift, LearnedDrift)
    assert moved.drift.sums.tobytes() == fresh.drift.sums.tobytes()
    assert moved.profile.sums.tobytes() == fresh.profile.sums.tobytes()  # the model is the same: the profile was kept
    assert moved.profile.sums.tobytes() != profile.tobytes()
    assert pipeline.said["a"][0][0] == "stable"


def test_the_detector_does_not_change_the_models_version(tiny_model: Path, folder: Path) -> None:
    assert read_manifest(folder).version == read_manifest(tiny_model).version
    assert verify(folder).drift is not None


@pytest.mark.parametrize("name", [DRIFT_FILE, VECTORS_FILE])
def test_a_damaged_detector_is_refused(tiny_model: Path, tmp_path: Path, name: str) -> None:
    damaged = add_detector(tiny_model, tmp_path / "model", [("0", TITLES[0])])
    data = bytearray((damaged / name).read_bytes())
    data[len(data) // 2] ^= 1
    (damaged / name).write_bytes(data)
    with pytest.raises(ModelFolderError, match=name):
        Watched(damaged)
    with pytest.raises(ModelFolderError, match=name):
        verify(damaged)
    (damaged / name).unlink()
    with pytest.raises(ModelFolderError, match="missing"):
        Watched(damaged)
