import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.lines import DataFolder, Line, LinesError, behaviour_line, in_event_time, item_line, read_lines

T = 1_700_000_000_000


def search(user: object, timestamp: object) -> bytes:
    return json.dumps({"event_id": "s", "user_id": user, "query": "ünder", "timestamp": timestamp}).encode()


@pytest.mark.parametrize("name", ["searches.jsonl", "searches.jsonl.gz"])
def test_lines_are_read_byte_for_byte_broken_ones_too_and_blank_ones_are_left_out(tmp_path: Path, name: str) -> None:
    lines = [b'{"a": 1}', b"{broken \xff", b"  spaced  "]
    content = b"\n\n".join(lines[:2]) + b"\r\n" + lines[2]
    path = tmp_path / name
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    assert list(read_lines(path)) == lines


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(LinesError, match=r"nothing\.jsonl cannot be read: No such file"):
        list(read_lines(tmp_path / "nothing.jsonl"))


@pytest.mark.parametrize("content", [gzip.compress(b"x" * 10_000)[:-9], b"not gzip", b"\x1f\x8b\x08\x00broken-------"])
def test_a_gzip_file_that_is_cut_off_or_none_at_all_is_an_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "clicks.jsonl.gz"
    path.write_bytes(content)
    with pytest.raises(LinesError, match="cannot be read"):
        list(read_lines(path))


def test_a_data_folder_needs_items_and_clicks_but_not_searches(tmp_path: Path) -> None:
    with pytest.raises(LinesError, match="is not a folder"):
        DataFolder.find(tmp_path / "absent")
    with pytest.raises(LinesError, match=r"lacks items\.jsonl and clicks\.jsonl"):
        DataFolder.find(tmp_path)
    for name in ("items.jsonl", "clicks.jsonl.gz"):
        (tmp_path / name).touch()
    assert DataFolder.find(tmp_path) == DataFolder(tmp_path / "items.jsonl", tmp_path / "clicks.jsonl.gz", None, None)
    (tmp_path / "clicks.jsonl").touch()
    with pytest.raises(LinesError, match="remove one"):
        DataFolder.find(tmp_path)


@pytest.mark.parametrize(
    ("value", "key", "time"),
    [
        (search("u1", T), b"u1", T),
        (search("ü", "2023-11-14T22:13:20Z"), "ü".encode(), T),
        (search("u1", "2023-11-14T23:13:20.001+01:00"), b"u1", T + 1),
        (search("u1", "2023-11-14T22:13:20"), b"u1", None),  # no zone
        (search("u1", "yesterday"), b"u1", None),
        (search("u1", None), b"u1", None),
        (search("u1", -5), b"u1", None),
        (search("u1", T // 1000), b"u1", None),  # seconds
        (search("u1", T * 1000), b"u1", None),  # a thousand years off
        (b'{"user_id": "u1"}', b"u1", None),
        (b'{"user_id": "u1", "timestamp": NaN}', None, None),
        (search(17, T), None, None),
        (search("", T), None, T),
        (b'{"timestamp": 1700000000000}', None, None),
        (b"{broken", None, None),
        (b'{"user_id": "\xff"}', None, None),
        (b"null", None, None),
    ],
)
def test_a_behaviour_is_keyed_by_user_and_timed_as_the_worker_reads_it(value: bytes, key: bytes | None, time: int | None) -> None:
    assert behaviour_line("searches", value) == Line("searches", key, value, time)


def test_an_item_is_keyed_by_its_id() -> None:
    assert item_line("items", b'{"item_id": "7", "title": 3}').key == b"7"
    assert item_line("items", b'{"title": "no id"}').key is None


def test_files_are_merged_by_time_and_at_the_same_time_searches_come_first() -> None:
    searches = [Line("searches", b"u", b"s%d" % n, time) for n, time in enumerate((5, 5, 9))]
    clicks = [Line("clicks", b"u", b"c%d" % n, time) for n, time in enumerate((4, 5, None, 9))]
    merged = [line.value.decode() for line in in_event_time(searches, clicks)]
    assert merged == ["c0", "s0", "s1", "c1", "c2", "s2", "c3"]


times = st.lists(st.none() | st.integers(0, 5))


@given(times, times)
def test_merging_loses_nothing_and_keeps_the_order_of_equal_times(one: list[int | None], two: list[int | None]) -> None:
    files = [[Line(topic, None, b"%d" % n, t) for n, t in enumerate(ts)] for topic, ts in (("a", one), ("b", two))]
    merged = in_event_time(*files)
    assert sorted(merged, key=lambda line: (line.topic, int(line.value))) == files[0] + files[1]
    timed = [line for line in merged if line.time is not None]
    assert timed == sorted(timed, key=lambda line: (line.time, line.topic, int(line.value)))
