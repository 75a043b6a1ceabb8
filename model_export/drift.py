"""`model-export train --task drift`: the drift score, learned from splices of real histories instead of set by hand."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import NamedTuple

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor

from model_export.cuts import cut
from model_export.data import Log, Source
from model_export.drift_network import HALF_LIVES, JUDGED, SIZE, WARM_UP, Detector, write_network
from model_export.learner import Shuffled, fit
from model_export.manifest import amend
from model_export.options import Options, TrainingError
from model_export.splices import AGES, LENGTH, Example, Histories, History, Splicer, co_behaviour, histories, long_ones
from model_export.verify import VerificationError, check_drift, drift_examples
from stream.encoder import Encoder
from stream.encoder.manifest import DriftPart, Manifest
from stream.learned_drift import DRIFT_FILE, VECTORS_FILE, LearnedDetector, item_key
from stream.state import model_hash

Floats = NDArray[np.float64]

DEFAULTS = {"epochs": 4, "batch_size": 64, "learning_rate": 2e-3}
EXAMPLES = 8  # of each user in an epoch
STRANGERS = 0.25  # of the examples are judged by their texts alone
SMOOTHING = 0.7
VALIDATION = 400  # spliced histories of users held out
EVERY = 650  # behaviours of users held out to one false alarm
RARER = 5  # times that false shifts are
CALM = 0.2  # score at which it is over: odds of a quarter of the alarm's
HORIZON = 30  # behaviours after a change within which it is to be found
CHANCE = 3.0  # times as many changes must be found as false alarms alone would meet
PARITY = 1e-4  # of a probability, ONNX Runtime against PyTorch

CARD = """\
## Drift

`{onnx}` and `{npz}` say how likely it is that a user's interest changed within the last {ages} behaviours. Learned from {learned} users
of {since} to {until}, by splicing one's history onto another's; {held_out} other users, chosen by their id, were held out. Of all these
histories {cuts} were cut in two before, where a detector trained for that purpose found a change of interest.

| on users held out | |
|---|---|
| behaviours to a false alarm | {every:.0f} |
| changes found within {horizon} behaviours | {detected:.3f} |
| behaviours until a change is found ({horizon} where it is not) | {delay:.1f} |

Changes are splices, not real ones. Real changes that are left within the histories held out count as false alarms, those that were
cut out do not count, and what was found depends on how far apart the spliced tastes are. The held-out users chose the thresholds and
when training stopped.

Options: {options}
"""


def train(source: Source, output: Path, options: Options, console: Console) -> None:
    """Add a drift detector to the model folder `output`.

    Raises:
        DataError: there are too few users with long histories.
        ModelFolderError, OutputError: there is no whole model in `output`, or it cannot be replaced.
        TrainingError: an option that has no meaning here, or what was learned finds nothing.
    """
    if options.method != "full" or options.layers is not None:
        raise TrainingError("--method and --layers are for encoders; the drift detector is trained whole")
    options = options.with_defaults(DEFAULTS)
    if options.precision == "auto":
        options = options.model_copy(update={"precision": "fp32"})  # it is too small to gain from less
    log = source.read()
    found = histories(log)
    encoder = Encoder(output)
    texts = encoder.encode(found.texts)
    texts -= texts[: found.items].mean(axis=0, dtype=np.float64).astype(np.float32)
    learned, held_out = long_ones(found.learned), long_ones(found.held_out)
    console.print(f"{len(learned)} users with long histories to learn from, {len(held_out)} held out")
    first = _learn(found, texts, learned, held_out, options, console, "drift-first")
    (clean, cuts), (judges, cuts_held_out) = cut(_chances(first, learned)), cut(_chances(first, held_out))
    console.print(f"{cuts} and {cuts_held_out} of the histories are cut where the interest seems to have changed")
    detector = _learn(found, texts, clean, judges, options, console, "drift")
    smoothed, lengths = judge(detector, judges)
    part = _part(detector, smoothed, lengths, Splicer(judges, detector.vectors()), options)
    console.print(
        f"{part.metrics['detected']:.3f} found within {HORIZON} behaviours, after {part.metrics['delay']:.1f} on average; "
        f"one false alarm in {part.false_alarm_every:.0f}"
    )
    _publish(
        log, found, detector, part, output, {"learned": len(learned), "held_out": len(held_out), "cuts": cuts + cuts_held_out}
    )


def _learn(
    found: Histories,
    texts: NDArray[np.float32],
    learned: list[History],
    held_out: list[History],
    options: Options,
    console: Console,
    name: str,
) -> Detector:
    torch.manual_seed(options.seed)
    vectors = co_behaviour(found.learned, len(found.texts), SIZE, options.seed)
    vectors[found.items :] = 0.0  # a query is what its text says: queries are too many to know each
    detector = Detector(texts, vectors, dropout=options.dropout, strangers=STRANGERS)
    start = detector.vectors()
    splicer, judges = Splicer(learned, start), Splicer(held_out, start)
    made = [judges.example(number, Random(f"{options.seed} {number}")) for number in range(VALIDATION)]
    check = collate([_Drawn(example, options.seed, 1.0) for example in made])
    check["places"] = torch.arange(WARM_UP - 1, LENGTH, 4).repeat(VALIDATION, 1)

    def validate() -> dict[str, float]:
        return {"log_likelihood": -float(detector(**check).loss)}

    assert options.batch_size is not None
    count = EXAMPLES * len(learned)

    def make(number: int, chance: Random) -> _Drawn:
        return _Drawn(splicer.example(number, chance), chance.getrandbits(32), chance.random())

    examples = Shuffled(count, make, [LENGTH] * count, batch=options.batch_size, seed=options.seed)
    history = fit(
        detector, examples, collate, validate, options, options.runs / name, metric="log_likelihood", words=detector.own
    )
    for entry in history:
        if "eval_log_likelihood" in entry:
            console.print(f"epoch {entry['epoch']:.0f}: log-likelihood {entry['eval_log_likelihood']:.4f} on users held out")
    return detector.eval()


class _Drawn(NamedTuple):
    """An example and the chance that goes with it."""

    example: Example
    seed: int  # of the places that are judged
    stranger: float


def collate(drawn: Sequence[_Drawn]) -> dict[str, Tensor]:
    """Make a batch; its places are chosen by the first example's seed."""
    places = Random(drawn[0].seed).sample(range(WARM_UP - 1, LENGTH), JUDGED)
    return {
        "rows": torch.from_numpy(np.stack([each.example.rows for each in drawn])),
        "ages": torch.from_numpy(np.stack([each.example.ages for each in drawn])),
        "places": torch.tensor(sorted(places)).repeat(len(drawn), 1),
        "strangers": torch.tensor([each.stranger for each in drawn]),
    }


def judge(detector: Detector, users: Sequence[History]) -> tuple[Floats, NDArray[np.int64]]:
    """Return the smoothed probability after each of the first behaviours (users, LENGTH), and how many there are (users,)."""
    smoothed = 1.0 - _probabilities(detector, users)[..., -1]
    smoothed[:, : WARM_UP - 1] = 0.0
    for place in range(1, LENGTH):
        smoothed[:, place] = SMOOTHING * smoothed[:, place - 1] + (1.0 - SMOOTHING) * smoothed[:, place]
    return smoothed, np.array([min(len(history), LENGTH) for history in users])


def _chances(detector: Detector, users: Sequence[History]) -> Iterator[tuple[History, Floats]]:
    """Yield each history with the probabilities of the classes after its first behaviours."""
    for history, chances in zip(users, _probabilities(detector, users), strict=True):
        yield history, chances[: len(history)]


def _probabilities(detector: Detector, users: Sequence[History]) -> Floats:
    """Return what the detector says after each of the first behaviours: (users, LENGTH, classes)."""
    rows = np.zeros((len(users), LENGTH), np.int64)
    for row, history in zip(rows, users, strict=True):
        row[: len(history)] = history[:LENGTH]
    found = []
    with torch.inference_mode():
        for start in range(0, len(users), 64):
            part = torch.from_numpy(rows[start : start + 64])
            ages = torch.full((len(part), LENGTH), len(AGES))
            logits = detector(part, ages, torch.arange(LENGTH)[None], torch.ones(len(part))).logits
            found.append(torch.softmax(logits, 2).double().numpy())
    return np.concatenate(found)


def raised(smoothed: Floats, alarm: float, score: float = 0.5) -> NDArray[np.bool_]:
    """Return where a score is reached for the first time since it was calm, (users, LENGTH)."""
    up = np.zeros(smoothed.shape, np.bool_)
    on = np.zeros(len(smoothed), np.bool_)
    odds = alarm / (1.0 - alarm) * score / (1.0 - score)
    for place in range(smoothed.shape[1]):
        against = smoothed[:, place] / (1.0 - np.minimum(smoothed[:, place], 1.0 - 1e-9))
        up[:, place] = ~on & (against >= odds)
        on |= up[:, place]
        on &= against > alarm / (1.0 - alarm) * CALM / (1.0 - CALM)
    return up


def thresholds(smoothed: Floats, lengths: NDArray[np.int64]) -> tuple[float, float, float]:
    """Return alarm (a smoothed probability), shifted (a score), and how many behaviours there are to a false alarm."""
    inside = np.arange(LENGTH)[None] < lengths[:, None]
    inside[:, : WARM_UP - 1] = False
    judged = int(inside.sum())
    candidates = np.clip(np.quantile(smoothed[inside], np.linspace(0.5, 1.0, 400)), 1e-4, 0.9999)
    rates = [judged / max(1, int((raised(smoothed, a) & inside).sum())) for a in candidates]
    place = next((n for n, rate in enumerate(rates) if rate >= EVERY and min(rates[n:]) >= EVERY), len(rates) - 1)
    alarm = float(candidates[place])
    for score in np.linspace(0.5, 0.99, 50):
        if judged / max(1, int((raised(smoothed, alarm, score) & inside).sum())) >= RARER * EVERY:
            break
    return alarm, round(float(score), 4), rates[place]


def _part(detector: Detector, smoothed: Floats, lengths: NDArray[np.int64], judges: Splicer, options: Options) -> DriftPart:
    alarm, shifted, every = thresholds(smoothed, lengths)
    made = [judges.example(number, Random(f"{options.seed} judged {number}")) for number in range(2 * VALIDATION)]
    spliced = [(example.rows[example.ages >= 0], example.change) for example in made if example.change is not None]
    after, _ = judge(detector, [rows for rows, _ in spliced])
    alarms = raised(after, alarm)
    delays = []
    for row, (_, start) in zip(alarms, spliced, strict=True):
        hits = np.flatnonzero(row[start : start + HORIZON])
        delays.append(int(hits[0]) + 1 if len(hits) else None)
    detected = float(np.mean([delay is not None for delay in delays]))
    if detected < CHANCE * HORIZON / every:
        raise TrainingError(
            f"gate: {detected:.3f} of the changes were found within {HORIZON} behaviours by users held out; false alarms alone "
            f"would meet {HORIZON / every:.3f}, and {CHANCE:.0f} times as many are asked for. Nothing was published"
        )
    return DriftPart(
        half_lives=list(HALF_LIVES),
        size=SIZE,
        warm_up=WARM_UP,
        smoothing=SMOOTHING,
        alarm=round(alarm, 6),
        shifted=shifted,
        calm=CALM,
        false_alarm_every=round(every, 1),
        metrics={
            "detected": round(detected, 4),
            "delay": round(float(np.mean([HORIZON if delay is None else delay for delay in delays])), 2),
        },
        options=options.told(),
    )


def _publish(log: Log, found: Histories, detector: Detector, part: DriftPart, output: Path, users: Mapping[str, int]) -> None:
    known = np.flatnonzero(detector.known[: found.items, 0].numpy() > 0)
    items = list(log.items.values())
    titles = [items[row].title.strip() or found.texts[row] for row in known]  # as the catalogue calls them
    keys = np.array([item_key(items[row].item_id, title) for row, title in zip(known, titles, strict=True)], np.int64)

    def add(folder: Path) -> None:
        write_network(detector.network, folder / DRIFT_FILE)
        np.savez(
            folder / VECTORS_FILE,
            keys=keys,
            vectors=detector.vectors()[known],
            projection=detector.projection.detach().numpy(),
        )

    day = [datetime.fromtimestamp(event.time / 1000, UTC).strftime("%Y-%m-%d") for event in (log.events[0], log.events[-1])]
    card = CARD.format(
        onnx=DRIFT_FILE,
        npz=VECTORS_FILE,
        ages=AGES[-1],
        since=day[0],
        until=day[1],
        every=part.false_alarm_every,
        horizon=HORIZON,
        options=msgspec.json.encode(part.options).decode(),
        **users,
        **part.metrics,
    )

    def check(folder: Path, manifest: Manifest) -> None:
        check_drift(folder, manifest)
        sums, counts = drift_examples(manifest)
        served = LearnedDetector(folder, manifest, model_hash(manifest.version)).probabilities(sums, counts)
        with torch.inference_mode():
            logits = detector.network(torch.from_numpy(sums), torch.from_numpy(counts))
        off = float(np.abs(served - (1.0 - torch.softmax(logits, 1)[:, -1].numpy())).max())
        if off > PARITY:
            raise VerificationError(
                f"parity: the drift detector's ONNX is {off:.2g} away from PyTorch's; {PARITY:.0g} is allowed"
            )

    amend(output, lambda manifest: msgspec.structs.replace(manifest, drift=part), card, add=add, check=check)
