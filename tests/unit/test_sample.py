from pathlib import Path

import msgspec
import pytest

from stream import sample
from stream.decode import EARLIEST
from stream.events import Click, Item, Search
from stream.sample import DAYS, SHIFTING, START, USERS, Sample
from stream.sample_shop import CATEGORIES


@pytest.fixture(scope="module")
def made() -> Sample:
    return sample.make()


def read(folder: Path, name: str, kind: type) -> list:
    return [msgspec.json.decode(line, type=kind) for line in (folder / f"{name}.jsonl").read_bytes().splitlines()]


def test_the_same_seed_writes_the_same_bytes_and_another_one_does_not(tmp_path: Path) -> None:
    for folder, seed in (("one", 7), ("same", 7), ("other", 8)):
        sample.write(tmp_path / folder, seed)
    for name in ("items", "searches", "clicks", "truth"):
        one, same, other = ((tmp_path / f / f"{name}.jsonl").read_bytes() for f in ("one", "same", "other"))
        assert one == same != other


def test_what_is_written_is_what_the_worker_reads(tmp_path: Path) -> None:
    made = sample.write(tmp_path)
    assert read(tmp_path, "items", Item) == made.items
    assert read(tmp_path, "searches", Search) == made.searches
    assert read(tmp_path, "clicks", Click) == made.clicks
    truth = {row["user_id"]: row for row in read(tmp_path, "truth", dict)}
    assert len(truth) == USERS
    assert {user: row["shift_event_id"] for user, row in truth.items() if row["shift_event_id"]} == {
        user: shift.event_id for user, shift in made.truth.items()
    }


@pytest.mark.parametrize("seed", range(5))
def test_the_size_is_as_promised_whatever_the_seed(seed: int) -> None:
    made = sample.make(seed)
    assert 360 <= len(made.items) <= 440
    assert 10_500 <= len(made.searches) + len(made.clicks) <= 13_500
    assert len({click.user_id for click in made.clicks}) == USERS
    assert len(made.truth) == SHIFTING


def test_ids_and_titles_are_unique_and_clicks_are_on_items_of_the_catalogue(made: Sample) -> None:
    events = [event.event_id for event in (*made.searches, *made.clicks)]
    assert len(set(events)) == len(events)
    assert len({item.item_id for item in made.items}) == len({item.title for item in made.items}) == len(made.items)
    assert {item.category for item in made.items} == set(CATEGORIES)
    assert {click.item_id for click in made.clicks} <= {item.item_id for item in made.items}


def test_files_are_in_event_time_order_and_a_users_times_are_all_different(made: Sample) -> None:
    for events in (made.searches, made.clicks):
        times = [event.timestamp for event in events]
        assert times == sorted(times)
        assert START <= times[0] < times[-1] < START + (DAYS + 1) * sample.DAY_MS
    places = [(event.user_id, event.timestamp) for event in (*made.searches, *made.clicks)]
    assert len(set(places)) == len(places)


def test_a_worker_takes_the_events_whatever_the_date_on_which_the_demo_runs() -> None:
    # Events from the future are refused, so the sample lies before this project was begun.
    assert EARLIEST < START + (DAYS + 1) * sample.DAY_MS < 1_767_225_600_000  # 2026-01-01


def test_a_click_that_follows_a_search_carries_its_query_and_its_position(made: Sample) -> None:
    searched = {(search.user_id, search.query) for search in made.searches}
    followed = [click for click in made.clicks if click.query is not None]
    assert len(followed) > len(made.clicks) / 2
    assert all((click.user_id, click.query) in searched and click.position is not None for click in followed)


def test_interests_shift_where_the_truth_says_and_nowhere_else(made: Sample) -> None:
    category = {item.item_id: item.category for item in made.items}
    clicks: dict[str, list[Click]] = {}
    for click in made.clicks:
        clicks.setdefault(click.user_id, []).append(click)
    shares = []
    for user, shift in made.truth.items():
        at = [click.event_id for click in clicks[user]].index(shift.event_id)
        seen = [category[click.item_id] for click in clicks[user]]
        assert shift.from_category != shift.to_category
        assert at >= 10, "long enough before to know the old interest"
        assert len(seen) - at >= 10, "long enough after to notice the new one"
        assert shift.to_category not in seen[:at]
        assert seen[at] == shift.to_category
        shares.append((seen[:at].count(shift.from_category) / at, seen[at:].count(shift.to_category) / len(seen[at:])))
    assert min(before for before, _ in shares) > 0.5
    assert min(after for _, after in shares) > 0.5
    for user in clicks.keys() - made.truth.keys():
        assert len({category[click.item_id] for click in clicks[user]}) <= 2
