"""The report's plots, as Vega-Lite specifications. Colours come from the page: it knows whether it is light or dark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Spec = dict[str, Any]

SIDE_BY_SIDE = ("map@5", "hr@1", "hr@5", "hr@10", "ndcg@10")
CLOCK = {"hours": "%H:%M", "day": "%d %b", "date": "%d %b", "week": "%d %b", "month": "%b %Y", "year": "%Y"}
ROW = 26  # pixels of one line of a plot with names beside it


def name_of(measure: str) -> str:
    """Return a measure as it is usually written."""
    name, at, cut = measure.partition("@")
    return ("nDCG" if name == "ndcg" else name.upper()) + at + cut


def over_time(curves: Mapping[str, Sequence[Mapping[str, Any]]], measure: str) -> Spec:
    """Draw a measure over event time, one line per variant."""
    values = [{"variant": name, **point} for name, points in curves.items() for point in points]
    return _plot(
        values,
        height=220,
        mark={"type": "line", "point": {"size": 28}, "strokeWidth": 2},
        encoding={
            "x": {
                "field": "time",
                "type": "temporal",
                "title": None,
                "scale": {"type": "utc"},
                "axis": {"tickCount": 6, "format": CLOCK},
            },
            "y": {"field": "value", "type": "quantitative", "title": name_of(measure), "scale": {"zero": False}},
            "color": _variants(list(curves)),
            "tooltip": [
                {"field": "variant", "title": "variant"},
                {"field": "from", "type": "temporal", "title": "from", "format": "%Y-%m-%d %H:%M"},
                {"field": "to", "type": "temporal", "title": "to", "format": "%Y-%m-%d %H:%M"},
                {"field": "clicks", "title": "clicks"},
                _number("value", name_of(measure)),
            ],
        },
    )


def bars(values: Mapping[str, Mapping[str, float]], order: Sequence[str], title: str) -> Spec:
    """Draw values in [0, 1] by name and variant, as bars: `values` by variant, then by name."""
    rows = [{"variant": v, "name": n, "value": found[n]} for v, found in values.items() for n in order if n in found]
    return _plot(
        rows,
        height=_height(order, len(values)),
        mark={"type": "bar", "cornerRadiusEnd": 2},
        encoding={
            "y": _names(order),
            "yOffset": {"field": "variant", "type": "nominal", "sort": list(values)},
            "x": {"field": "value", "type": "quantitative", "title": title, "axis": {"tickCount": 6}},
            "color": _variants(list(values)),
            "tooltip": [{"field": "name"}, {"field": "variant"}, _number("value", title)],
        },
    )


def differences(
    found: Mapping[str, Mapping[str, Mapping[str, float]]], order: Sequence[str], title: str, names: Sequence[str]
) -> Spec:
    """Draw differences with their intervals about zero: `found` by variant, then by name; `names` are all variants."""
    rows = [
        {"variant": variant, "name": name, **by_name[name]}
        for variant, by_name in found.items()
        for name in order
        if name in by_name and by_name[name]["low"] is not None
    ]
    shared: dict[str, Any] = {"y": _names(order), "yOffset": {"field": "variant", "type": "nominal", "sort": list(found)}}
    tooltip = [{"field": "name"}, {"field": "variant"}, *(_number(f, f, "+.4f") for f in ("estimate", "low", "high"))]
    color = _variants(list(found), names)
    axis = {"title": title, "axis": {"format": "+.4~f", "tickCount": 5}}
    return _plot(
        rows,
        height=_height(order, len(found)),
        layer=[
            {"data": {"values": [{"zero": 0}]}, "mark": {"type": "rule", "strokeDash": [4, 3]}, "encoding": {"x": {"datum": 0}}},
            {
                "mark": {"type": "rule", "strokeWidth": 2.5},
                "encoding": shared
                | {
                    "x": {"field": "low", "type": "quantitative", **axis},
                    "x2": {"field": "high"},
                    "color": color,
                    "tooltip": tooltip,
                },
            },
            {
                "mark": {"type": "point", "filled": True, "size": 70, "opacity": 1},
                "encoding": shared | {"x": {"field": "estimate", "type": "quantitative"}, "color": color, "tooltip": tooltip},
            },
        ],
    )


def by_hour(values: Mapping[str, Mapping[int, float]], measure: str) -> Spec:
    """Draw a measure by hour of the day, one line per variant."""
    rows = [{"variant": v, "hour": hour, "value": value} for v, found in values.items() for hour, value in found.items()]
    return _plot(
        rows,
        height=140,
        mark={"type": "line", "point": {"size": 28}, "strokeWidth": 2},
        encoding={
            "x": {
                "field": "hour",
                "type": "quantitative",
                "title": "hour of the day, UTC",
                "axis": {"values": list(range(0, 24, 3))},
            },
            "y": {"field": "value", "type": "quantitative", "title": name_of(measure), "scale": {"zero": False}},
            "color": _variants(list(values)),
            "tooltip": [{"field": "variant"}, {"field": "hour"}, _number("value", name_of(measure))],
        },
    )


def trade_off(
    curves: Mapping[str, Sequence[Mapping[str, float]]], points: Mapping[str, Mapping[str, float]], given: float
) -> Spec:
    """Draw what detectors find against how seldom they cry wolf: `curves` by detector, and `points` for fixed settings."""
    names = list(dict.fromkeys([*curves, *points]))
    rows = [{"detector": name, **point} for name, line in curves.items() for point in line]
    marks = [{"detector": name, **point} for name, point in points.items()]
    x = {
        "field": "arl0",
        "type": "quantitative",
        "title": "events without a shift per false alarm",
        "scale": {"type": "log", "nice": False},
        "axis": {"values": [10, 30, 100, 300, 1000, 3000, 10_000, 30_000], "format": ",d"},
    }
    y = {"field": "detected", "type": "quantitative", "title": "share of shifts detected", "scale": {"domain": [0, 1]}}
    color = {"field": "detector", "type": "nominal", "title": None, "scale": {"domain": names}, "sort": names}
    tooltip = [{"field": "detector"}, _number("arl0", "events per false alarm", ",.0f"), _number("detected", "detected", ".3f")]
    tooltip.append(_number("delay", "mean delay", ".1f"))
    encoding = {"x": x, "y": y, "color": color, "tooltip": tooltip}
    return _plot(
        rows,
        height=260,
        layer=[
            {"data": {"values": [{}]}, "mark": {"type": "rule", "strokeDash": [4, 3]}, "encoding": {"x": {"datum": given}}},
            {"mark": {"type": "line", "strokeWidth": 2, "point": {"size": 20}}, "encoding": encoding},
            {
                "data": {"values": marks},
                "mark": {"type": "point", "shape": "diamond", "size": 150, "filled": True},
                "encoding": encoding,
            },
        ],
    )


def journey(found: Mapping[str, Any]) -> Spec:
    """Draw one user's way: rows are interests, dots what was done, squares what was shown first; the line is the drift score."""
    steps = found["steps"]
    rows = [
        {"n": s["n"], "interest": s[key], "mark": label, "what": s[text], "time": s["time"]}
        for s in steps
        for key, label, text in (("shown", "recommended first", "titles"), ("did", "clicked", "what"))
        if s[key] is not None
    ]
    changes = [{"n": s["n"], "what": s["change"]} for s in steps if s["change"] in ("drifting", "shifted")]
    changes += [{"n": s["n"], "what": "true shift"} for s in steps if s["shift"]]
    x = {"field": "n", "type": "quantitative", "title": "event of this user", "axis": {"tickMinStep": 1, "tickCount": 8}}
    x["scale"] = {"domain": [0, len(steps) + 1], "nice": False}
    marks = ["clicked", "recommended first"]
    return _plot(
        rows,
        height=max(120, ROW * len(found["rows"])),
        layer=[
            {
                "data": {"values": [{"n": s["n"], "score": s["score"]} for s in steps]},
                "mark": {
                    "type": "area",
                    "opacity": 0.18,
                    "line": {"strokeWidth": 1, "opacity": 0.7},
                    "interpolate": "step-after",
                },
                "encoding": {
                    "x": x,
                    "y": {
                        "field": "score",
                        "type": "quantitative",
                        "scale": {"domain": [0, 1]},
                        "axis": {"orient": "right", "title": "drift score", "grid": False, "values": [0, 0.5, 1]},
                    },
                },
            },
            *([_moments(changes, x)] if changes else []),
            {
                "mark": {"type": "point", "size": 42, "strokeWidth": 1.5},
                "encoding": {
                    "x": x,
                    "y": {
                        "field": "interest",
                        "type": "nominal",
                        "sort": found["rows"],
                        "title": None,
                        "axis": {"labelLimit": 130},
                    },
                    "shape": {
                        "field": "mark",
                        "type": "nominal",
                        "title": None,
                        "scale": {"domain": marks, "range": ["circle", "square"]},
                    },
                    "color": {"field": "mark", "type": "nominal", "title": None, "scale": {"domain": marks}},
                    "tooltip": [
                        {"field": "mark"},
                        {"field": "what"},
                        {"field": "time", "type": "temporal", "format": "%Y-%m-%d %H:%M"},
                    ],
                },
            },
        ],
        resolve={"scale": {"y": "independent"}},
    )


def _moments(changes: list[dict[str, Any]], x: Spec) -> Spec:
    kinds = {"drifting": [2, 3], "shifted": [6, 3], "true shift": [1, 0]}
    return {
        "data": {"values": changes},
        "mark": {"type": "rule", "strokeWidth": 1.5},
        "encoding": {
            "x": x,
            "strokeDash": {
                "field": "what",
                "type": "nominal",
                "title": None,
                "scale": {"domain": list(kinds), "range": list(kinds.values())},
            },
            "tooltip": [{"field": "what"}, {"field": "n", "title": "event"}],
        },
    }


def _plot(values: list[Any], *, height: int, **more: Any) -> Spec:
    return {
        "data": {"values": values},
        "width": "container",
        "height": height,
        "autosize": {"type": "fit-x", "contains": "padding"},
    } | more


def _variants(shown: list[str], names: Sequence[str] | None = None) -> Spec:
    """Colour by variant, each variant alike in all plots; a legend only where there is something to tell apart."""
    legend = {"values": shown} if len(shown) > 1 else None
    return {
        "field": "variant",
        "type": "nominal",
        "title": None,
        "scale": {"domain": list(names or shown)},
        "sort": shown,
        "legend": legend,
    }


def _names(order: Sequence[str]) -> Spec:
    return {"field": "name", "type": "nominal", "sort": list(order), "title": None, "axis": {"labelLimit": 150}}


def _height(order: Sequence[str], series: int) -> int:
    return len(order) * max(ROW, 14 * series)


def _number(field: str, title: str, format: str = ".4f") -> Spec:
    return {"field": field, "type": "quantitative", "title": title, "format": format}
