"""The report in a real browser: it opens without a network, says nothing in the console, and every plot has marks."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.support.wait import WebDriverWait

from stream import sample

WIDTHS = {"desktop": 1280, "phone": 390}


@pytest.fixture(scope="session")
def report(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with every section that files can give: two variants, ablations, known shifts."""
    folder = tmp_path_factory.mktemp("report")
    made = sample.write(folder / "data")
    shifts = {user: shift.event_id for user, shift in made.truth.items()}
    lines = [{"user_id": user, "shift_event_id": shifts.get(user)} for user in sorted({click.user_id for click in made.clicks})]
    (folder / "truth.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "now.toml").write_text("")
    (folder / "less.toml").write_text("[recommend]\ntext_weight = 2.0\n")
    arguments = ["--data", folder / "data", "--limit", "6000", "--skip", "500", "--truth", folder / "truth.jsonl", "--ablate"]
    arguments += ["--variant", f"now={folder / 'now.toml'}", "--variant", f"less-text={folder / 'less.toml'}"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DRIFTSTREAM_")}
    done = subprocess.run(
        [sys.executable, "-m", "stream", "replay", *arguments, "--report", folder / "report.html"],
        env=environment | {"DRIFTSTREAM_MODEL__FOLDER": str(model_folder)},
        capture_output=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    return folder / "report.html"


@pytest.fixture
def browser() -> Iterator[webdriver.Chrome]:
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        if os.environ.get("CI"):
            pytest.fail("CI must have chromium and chromedriver")
        pytest.skip("there is no chromium with chromedriver (Debian: chromium, chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    for argument in ("--headless=new", "--no-sandbox", "--disable-background-networking"):
        options.add_argument(argument)
    found = webdriver.Chrome(options=options, service=Service(driver))
    yield found
    found.quit()


def open_report(browser: webdriver.Chrome, report: Path, width: int, scheme: str) -> None:
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]})
    browser.execute_cdp_cmd("Network.enable", {})
    browser.execute_cdp_cmd(
        "Network.emulateNetworkConditions", {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0}
    )
    browser.get(report.as_uri())
    WebDriverWait(browser, 60).until(lambda b: b.execute_script("return document.body.dataset.drawn"))


def requests(browser: webdriver.Chrome) -> list[str]:
    messages: list[Any] = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    return [url for url in sent if not url.startswith("data:")]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS.keys())
def test_the_report_opens_offline_without_errors_and_every_plot_has_marks(
    browser: webdriver.Chrome, report: Path, width: int, scheme: str
) -> None:
    open_report(browser, report, width, scheme)
    assert browser.get_log("browser") == []
    assert requests(browser) == [report.as_uri()]
    marks = browser.execute_script(
        """return Object.fromEntries([...document.querySelectorAll(".chart")].map(chart => [chart.id, {
            marks: chart.querySelectorAll(".mark-line path, .mark-rect path, .mark-symbol path, .mark-rule line").length,
            width: chart.querySelector("svg").getBoundingClientRect().width, room: chart.clientWidth}]))"""
    )
    wanted = {
        "over-time",
        "measures",
        "differences",
        "slices",
        "slice-differences",
        "hours",
        "ablations",
        "trade-off",
        "journey-0",
    }
    assert wanted <= set(marks)
    assert all(found["marks"] > 2 for found in marks.values()), marks
    assert all(found["width"] <= found["room"] + 1 for found in marks.values()), marks
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width


def test_the_report_says_what_was_found_and_of_what(browser: webdriver.Chrome, report: Path) -> None:
    open_report(browser, report, 1280, "light")
    headline = browser.execute_script("return document.querySelector('h1').textContent")
    assert "less-text" in headline
    assert "MAP@5" in headline
    text = browser.execute_script("return document.body.innerText")
    for wanted in ("6,000", "Page–Hinkley", "recommend.text_weight", "int8", "2.0", "profile hourly", "long-term only", "UTC"):
        assert wanted in text, wanted
