"""A user's profile in words: the items nearest to it at each time scale, and the behaviours that it rests on."""

from __future__ import annotations

from typing import Any

from stream.recommend.catalogue import Catalogue
from stream.settings import Settings
from stream.state import UserState
from stream.window import CLICK

NEAREST = 5
EVIDENCE = 10


def describe(user_id: str, user: UserState, catalogue: Catalogue, settings: Settings) -> dict[str, Any]:
    """Return what `driftstream profile` shows, as plain values."""
    means = user.profile.means()
    interests = []
    for scale, half_life in enumerate(settings.profile.half_lives_days):
        nearest: list[str] = []
        if means is not None and len(catalogue):
            nearest = [catalogue.titles[row] for row in catalogue.nearest(means[scale], NEAREST)]
        interests.append({"half_life_days": half_life, "nearest": nearest})
    evidence = [
        {
            "timestamp": behaviour.time,
            "kind": "click" if behaviour.kind == CLICK else "search",
            "what": catalogue.title(behaviour.subject) or behaviour.subject if behaviour.kind == CLICK else behaviour.subject,
        }
        for behaviour in reversed(user.window.behaviours[-EVIDENCE:])
    ]
    level = user.drift.level(settings.drift)
    return {
        "user_id": user_id,
        "drift": {"score": level.score, "state": level.state},
        "interests": interests,
        "evidence": evidence,
    }
