"""river's drift detectors beside ours, on one signal per user, each over a range of its own settings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from river.base import DriftDetector
from river.drift import ADWIN, KSWIN, PageHinkley

from stream.recommend.catalogue import Catalogue
from stream.replay.clicks import Clicks
from stream.replay.shifts import WARM_UP, Story, signal

# Their defaults are for streams of thousands; these users have a hundred or two clicks, so all look at every click, and KSWIN's windows
# are short enough to be full before the first shift.
DETECTORS: dict[str, tuple[Callable[[float], DriftDetector], Sequence[float]]] = {
    "ADWIN": (lambda delta: ADWIN(delta=delta, clock=1), (0.8, 0.5, 0.2, 0.05, 0.01, 0.002)),
    "Page–Hinkley": (
        lambda threshold: PageHinkley(min_instances=WARM_UP, delta=0.05, threshold=threshold, mode="up"),
        (0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0),
    ),
    "KSWIN": (lambda alpha: KSWIN(alpha=alpha, window_size=45, stat_size=15, seed=0), (0.01, 0.001, 0.0001, 0.00001)),
}


def rivals(clicks: Clicks, told: Sequence[Story], catalogue: Catalogue) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    """Yield the alarms of each detector at each setting: its name, and (clicks,).

    Args:
        clicks: of the recording.
        told: the users whose clicks are watched.
        catalogue: the items' vectors.
    """
    vectors = {item: vector for item in catalogue.rows if (vector := catalogue.vector(item)) is not None}
    signals = [signal(clicks, story, vectors, catalogue.centre) for story in told]
    for name, (make, settings) in DETECTORS.items():
        for setting in settings:
            alarms = np.zeros(len(clicks), np.bool_)
            for story, values in zip(told, signals, strict=True):
                detector = make(setting)
                for number, value in zip(story.clicks, values, strict=True):
                    detector.update(value)
                    alarms[number] = detector.drift_detected
            yield name, alarms
