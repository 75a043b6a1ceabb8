"""`driftstream profile`: a user's interests, as a running worker knows them."""

from __future__ import annotations

import json
import urllib.error
import urllib.parse
import urllib.request
from datetime import UTC, datetime

from rich.console import Console
from rich.table import Table

from stream.settings import Settings


class AskError(Exception):
    """The worker gave no profile; the message says why and what to do."""


def show_profile(settings: Settings, user_id: str, url: str | None) -> None:
    """Print a user's interests per time scale, the behaviours that are their evidence, and the drift state.

    Raises:
        AskError: no worker answers there, it does not accept `web.token`, does not know the user, or does not own the user's partition.
    """
    base = url or f"http://{settings.web.host}:{settings.web.port}"
    address = f"{base.rstrip('/')}/profiles/{urllib.parse.quote(user_id, safe='')}"
    token = settings.web.token
    request = urllib.request.Request(address)
    if token is not None:
        request.add_unredirected_header("Authorization", f"Bearer {token.get_secret_value()}")
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            found = json.load(response)
    except urllib.error.HTTPError as error:
        raise AskError(json.load(error).get("error", str(error))) from error
    except (urllib.error.URLError, OSError) as error:
        raise AskError(f"no worker answers at {base}; start one with `driftstream worker`, or name it with --url") from error
    _print(found)


def _print(found: dict[str, object]) -> None:
    console = Console(highlight=False)
    drift = found["drift"]
    assert isinstance(drift, dict)
    console.print(f"[bold]{found['user_id']}[/]  {drift['state']} (drift score {drift['score']:.2f})")
    interests = Table("time scale", "interests, nearest first", title="Interests", title_justify="left")
    for interest in found["interests"]:  # type: ignore[attr-defined]
        interests.add_row(f"half-life {interest['half_life_days']:g} days", ", ".join(interest["nearest"]))
    console.print(interests)
    evidence = Table("when", "what", "", title="Evidence, newest first", title_justify="left")
    for behaviour in found["evidence"]:  # type: ignore[attr-defined]
        when = datetime.fromtimestamp(behaviour["timestamp"] / 1000, UTC)
        evidence.add_row(f"{when:%Y-%m-%d %H:%M}", behaviour["kind"], behaviour["what"])
    console.print(evidence)
