"""The report: one HTML file with everything inside, to be opened anywhere, without a network."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any, NamedTuple

import jinja2

from stream.replay import charts
from stream.replay.charts import Spec, name_of

TABLE = ("map@5", "map@10", "hr@1", "hr@5", "hr@10", "ndcg@10", "mrr")


class Chart(NamedTuple):
    """A plot with its place in the page, and what it says to those who cannot see it."""

    id: str
    title: str
    note: str
    spec: Spec


class Library:
    """Vega, Vega-Lite and Vega-Embed as one script. Bundling takes a second and holds the interpreter: another one does it."""

    def __init__(self) -> None:
        program = "import sys, vl_convert; sys.stdout.write(vl_convert.javascript_bundle('window.vegaEmbed = vegaEmbed;'))"
        self._process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, encoding="utf-8")

    def script(self) -> str:
        """Wait for the script and return it.

        Raises:
            CalledProcessError: it could not be made; what was wrong is on stderr.
        """
        script, _ = self._process.communicate()
        if self._process.returncode:
            raise subprocess.CalledProcessError(self._process.returncode, "vl_convert.javascript_bundle")
        return script


def render(findings: Mapping[str, Any], library: str) -> str:
    """Return the page.

    Args:
        findings: of a replay.
        library: what `Library.script` returns.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("stream.replay", "."), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    environment.filters |= {"day": _day, "measure": name_of, "signed": _signed}
    names = list(findings["variants"])
    return environment.get_template("report.html.j2").render(
        findings=findings,
        base=names[0],
        headline=_headline(findings),
        sections=_sections(findings),
        table=TABLE,
        changed=_changed(findings),
        library=library,
        version=version("driftstream"),
    )


def _headline(findings: Mapping[str, Any]) -> str:
    verdicts = [found["verdict"] for name, found in findings["comparisons"].items() if name not in findings["ablations"]]
    if verdicts:
        return " ".join(verdicts)
    primary = findings["primary"]
    base = next(iter(findings["variants"].values()))
    interval = base["interval"]
    hits = base["totals"]["hr@10"]
    bounds = "" if interval["low"] is None else f" ({interval['low']:.4f} to {interval['high']:.4f})"  # none of a single user
    return (
        f"The item that was clicked next stood in the list of ten in {hits:.1%} of {findings['judged']['clicks']:,} clicks; "
        f"{name_of(primary)} is {interval['estimate']:.4f}{bounds}."
    )


def _sections(findings: Mapping[str, Any]) -> list[tuple[str, str, list[Chart]]]:
    """Return the plots by section: title, introduction, charts."""
    primary, ablations = findings["primary"], findings["ablations"]
    variants = {name: found for name, found in findings["variants"].items() if name not in ablations}
    everything = list(findings["variants"])
    comparisons = {name: found for name, found in findings["comparisons"].items() if name not in ablations}
    sections = [("Over time", _OVER_TIME, [_over_time(variants, primary)])]
    order = [name_of(measure) for measure in charts.SIDE_BY_SIDE]
    side = [
        Chart(
            "measures",
            "Measures",
            "How often and how high the clicked item stood in the list; longer is better.",
            charts.bars({name: _named(found["totals"]) for name, found in variants.items()}, order, "mean over clicks"),
        )
    ]
    if comparisons:
        found = {name: _named(comparison["measures"]) for name, comparison in comparisons.items()}
        note = f"Right of the line is better than {everything[0]}. An interval (over users) that crosses the line may be chance."
        spec = charts.differences(found, order, f"difference from {everything[0]}", everything)
        side.append(Chart("differences", "Differences", note, spec))
    sections.append(("Side by side", "", side))
    sections.append(("For whom", _FOR_WHOM, _slices(variants, comparisons, primary, everything)))
    if ablations:
        rows = {everything[0]: {name: findings["comparisons"][name]["measures"][primary] for name in ablations}}
        spec = charts.differences(rows, list(ablations), f"{name_of(primary)}, difference from {everything[0]}", everything)
        sections.append(("What freshness and time scales bring", _ABLATIONS, [Chart("ablations", "Ablations", "", spec)]))
    if findings["drift"]:
        sections.append(("Finding shifts", _DRIFT, [_trade_off(findings["drift"])]))
    told = [
        Chart(f"journey-{n}", f"User {found['user']}", f"{found['events']} events", charts.journey(found))
        for n, found in enumerate(findings["journeys"])
    ]
    if told:
        sections.append(("Journeys", _JOURNEYS, told))
    return sections


def _named(measures: Mapping[str, Any]) -> dict[str, Any]:
    return {name_of(measure): value for measure, value in measures.items()}


def _over_time(variants: Mapping[str, Any], primary: str) -> Chart:
    spec = charts.over_time({name: found["curve"] for name, found in variants.items()}, primary)
    return Chart("over-time", f"{name_of(primary)} over event time", "", spec)


def _slices(variants: Mapping[str, Any], comparisons: Mapping[str, Any], primary: str, everything: Sequence[str]) -> list[Chart]:
    values = {name: {part: totals[primary] for part, totals in found["slices"].items()} for name, found in variants.items()}
    order = [part for part in next(iter(values.values())) if not part.startswith("hour:")]
    made = [Chart("slices", f"{name_of(primary)} by slice", "", charts.bars(values, order, name_of(primary)))]
    found = {name: comparison["slices"] for name, comparison in comparisons.items() if comparison["slices"]}
    if found:
        title = f"{name_of(primary)}, difference from {everything[0]}"
        order = [part for part in order if part != "all"]
        spec = charts.differences(found, order, title, everything)
        made.append(Chart("slice-differences", "Differences by slice", "Intervals are widened for the number of slices.", spec))
    hours = {
        name: {int(part[6:8]): value for part, value in parts.items() if part.startswith("hour:")}
        for name, parts in values.items()
    }
    return [*made, Chart("hours", f"{name_of(primary)} by hour", "", charts.by_hour(hours, primary))]


def _trade_off(drift: Mapping[str, Any]) -> Chart:
    spec = charts.trade_off(drift["curves"], drift["own_states"], drift["arl0"])
    return Chart("trade-off", "Detected against false alarms", "Up and to the right is better.", spec)


def _changed(findings: Mapping[str, Any]) -> list[tuple[str, str, list[Any]]]:
    """Return the settings in which variants differ: group, setting, the value of each."""
    settings = [found["settings"] for found in findings["variants"].values()]
    return [
        (group, name, [each[group][name] for each in settings])
        for group, values in settings[0].items()
        for name, value in values.items()
        if any(each[group][name] != value for each in settings)
    ]


def _signed(value: float | None) -> str:
    return "unknown" if value is None else f"{value:+.4f}"


def _day(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds / 1000, UTC).strftime("%Y-%m-%d %H:%M UTC")


_OVER_TIME = "Every click is predicted before it is learned from. Each point is the mean over equally many clicks."
_FOR_WHOM = "The same clicks, by who made them and what they were about. A click may be in several slices."
_ABLATIONS = (
    "The same events with less: profiles brought up to date only hourly or daily, and profiles of one time scale alone. "
    "Left of the line: what is given up."
)
_DRIFT = (
    "Against the known shifts: how many are found soon after, at each rate of false alarms. The dashed line is the rate at which "
    "detectors are compared; diamonds are the states as published."
)
_JOURNEYS = (
    "Users whose interest moved most. Circles are clicks, squares what stood first in the list; the shaded line is the drift score, "
    "vertical lines are the moments at which the state changed."
)
