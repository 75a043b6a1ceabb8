"""`model-export train --task rank`: the weights of the ranker, learned from what was clicked after each answer.

The formula is that of stream/recommend/ranker.py, so that weights stay what they are called. What is maximised is how near to the
top the next click would have been: the mean of 1/rank, with the rank made smooth,

    rank ≈ 1 + Σ_other σ((ln p_other − ln p_clicked) / τ)

(Qin, Liu & Li 2010). It starts from the settings. The likelihood of the clicks is not maximised: docs/decisions/0061 says why.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from model_export.data import DataError, Log, Source
from model_export.judge import judge
from model_export.manifest import amend
from model_export.occasions import Examples, Occasions
from model_export.options import Options, TrainingError
from stream.decode import EARLIEST
from stream.encoder import Encoder
from stream.encoder.manifest import Manifest, RankWeights
from stream.recommend.ranker import COVERAGE, FOLLOWED, POPULAR, QUERY, SIMILAR, TEXT
from stream.settings import Recommend, read_settings

PAST = 0.8  # of the events are learned from; what follows decides whether it was worth it
SHARPNESSES = (5.0, 7.0, 10.0, 15.0, 22.0)  # of similar queries: changes what the memory says, so that no gradient reaches it
UNSEEN_GATE = 0.99  # share of map@5 on unseen queries that must be kept: they are few, and their mean scatters by more
TEMPERATURE = 0.05  # τ, in units of ln p
LEAST = 1e-4  # that a weight can become: they are learned as logarithms
DEFAULTS = {"epochs": 5, "batch_size": 1024, "learning_rate": 0.05}
SCALARS = (
    "text_weight",
    "coverage_weight",
    "popular_prior",
    "similar_prior",
    "query_prior",
    "followed_prior",
    "repeat",
)

CARD = """\
## Ranking

The ranker's weights were learned from {examples} answers and the clicks that followed them, {since} to {until}. Learned from the
first {past:.0%} of that time and judged on the rest:

| map@5 | all | unseen queries |
|---|---|---|
| settings | {before[all]:.4f} | {before[unseen]:.4f} |
| learned | {after[all]:.4f} | {after[unseen]:.4f} |

The weights in the manifest were then learned from all of it: {weights}
"""


def train(source: Source, output: Path, options: Options, console: Console) -> Manifest:
    """Learn the ranker's weights with the model in `output`, and add them to its manifest.

    Only what came after the days that the encoder itself was trained on is learned from: on those days texts are nearer to what was
    clicked than they will be, so that too much weight would go to them.

    Raises:
        DataError: as it says, or all of the log is of days that the encoder was trained on.
        ModelFolderError, OutputError, SettingsError: as they say.
        TrainingError: on what followed, the weights are no better than the settings. Nothing is changed then.
    """
    options = options.with_defaults(DEFAULTS)
    settings = read_settings()
    encoder = Encoder(output, device=settings.model.device, variant=settings.model.variant, threads=settings.model.threads)
    log = source.read()
    since = _first_day(log, encoder.manifest, output)
    split = log.since(since).time_at(PAST)
    with console.status("replaying the log"):
        before = _quality(judge(log, split, encoder.encode, settings))
        past = Occasions(log.before(split), encoder, settings, since)
    weights = learn(past, settings.recommend, options, console)
    after = _quality(
        judge(log, split, encoder.encode, settings.model_copy(update={"recommend": _with(settings.recommend, weights)}))
    )
    console.print(f"on the last {1 - PAST:.0%}: settings {_shown(before)}; learned {_shown(after)}")
    if not (after["all"] > before["all"] and after["unseen"] >= UNSEEN_GATE * before["unseen"]):
        raise TrainingError(
            f"gate: on what followed, the learned weights must be better over all and keep {UNSEEN_GATE:.0%} on unseen queries: "
            f"{_shown(after)}, with the settings {_shown(before)}. Nothing was changed"
        )
    with console.status("replaying the log"):
        everything = Occasions(log, encoder, settings, since)
    weights = learn(everything, settings.recommend, options, console)
    named = ", ".join(f"{name} {_rounded(value)}" for name, value in msgspec.structs.asdict(weights).items())
    card = CARD.format(
        examples=len(everything.examples(settings.recommend)),
        since=_day(max(since, log.events[0].time)),
        until=_day(log.events[-1].time),
        past=PAST,
        before=before,
        after=after,
        weights=named,
    )
    return amend(output, lambda manifest: msgspec.structs.replace(manifest, rank=weights), card)


def _first_day(log: Log, manifest: Manifest, folder: Path) -> int:
    """Return the time from which on answers may be learned from: after what the encoder was trained on, ms."""
    trained = manifest.training
    if trained is None or trained.until is None:
        return EARLIEST
    if log.events and log.events[-1].time <= trained.until:
        raise DataError(
            f"the encoder in {folder} was trained on events to {_day(trained.until)}, and the log ends at {_day(log.events[-1].time)}: "
            "the ranker has to be learned from what came later. Give a later --until, train the encoder with an earlier one, or add "
            "rank to a model that was not trained on this log (model-export export)"
        )
    return trained.until + 1


def learn(occasions: Occasions, start: Recommend, options: Options, console: Console) -> RankWeights:
    """Return the weights that rank what was clicked next highest.

    Raises `DataError` if no answer was followed by a click.
    """
    best, found = -1.0, None
    for sharpness in SHARPNESSES:
        examples = occasions.examples(start.model_copy(update={"neighbour_sharpness": sharpness}))
        if not len(examples):
            raise DataError("nobody clicked after having been answered: there is nothing to learn from")
        with torch.no_grad():
            value = float(
                np.mean([float(_objective(part, _of(start, len(examples.profiles)))) for part in _batches(examples, 1024, None)])
            )
        if value > best:
            best, found = value, (sharpness, examples)
    assert found is not None
    sharpness, examples = found
    assert options.epochs is not None
    assert options.batch_size is not None
    assert options.learning_rate is not None
    logs = {name: weight.log().requires_grad_() for name, weight in _of(start, len(examples.profiles)).items()}
    optimiser = torch.optim.Adam(logs.values(), lr=options.learning_rate)
    shuffle = np.random.default_rng(options.seed)
    for epoch in range(options.epochs):
        reached = []
        for part in _batches(examples, options.batch_size, shuffle):
            optimiser.zero_grad()
            gain = _objective(part, {name: log.exp() for name, log in logs.items()})
            (-gain).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            reached.append(gain.item())
        console.print(f"epoch {epoch + 1} of {options.epochs}: {np.mean(reached):.4f} over {len(examples)} answers")
    scalars = {name: float(logs[name].detach().exp()) for name in SCALARS}
    profile = logs["profile"].detach().exp()
    shares = (profile / profile.sum()).tolist()
    return RankWeights(neighbour_sharpness=sharpness, profile_weight=float(profile.sum()), profile_shares=shares, **scalars)


def log_probabilities(part: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> Tensor:
    """Return ln p of each item at each answer (answers, items): the formula of stream/recommend/ranker.py, differentiable.

    Args:
        part: `features` (len(FEATURES), answers, items), `profiles` (scales, answers, items), `after_click` (answers,) and `here`
            (answers, items), 1 where an item was clicked just now and 0 elsewhere.
        weights: by name, scalars; and `profile` (scales,), the profile's weight times the share of each time scale.
    """
    features, after_click, here = part["features"], part["after_click"], part["here"]
    log_odds = (
        weights["text_weight"] * features[TEXT]
        + weights["coverage_weight"] * features[COVERAGE]
        + torch.einsum("k,kai->ai", weights["profile"], part["profiles"])
    )
    prior = (features[POPULAR] + weights["popular_prior"]) * (log_odds - log_odds.amax(1, keepdim=True)).exp()
    likely = prior / prior.sum(1, keepdim=True)
    for clicks, worth in ((features[SIMILAR], weights["similar_prior"]), (features[QUERY], weights["query_prior"])):
        likely = (clicks + worth * likely) / (clicks.sum(1, keepdim=True) + worth)
    again = likely * (1 - here * (1 - weights["repeat"]))
    again = again / again.sum(1, keepdim=True).clamp_min(1e-9)
    followed, worth = features[FOLLOWED], weights["followed_prior"]
    after = (followed + worth * again) / (followed.sum(1, keepdim=True) + worth)
    return (torch.where(after_click[:, None], after, likely) + 1e-12).log()


def _objective(part: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> Tensor:
    likely = log_probabilities(part, weights)
    clicked = likely.gather(1, part["next_item"][:, None])
    # The clicked item stands a half behind itself: hence 0.5 and not 1.
    ranks = 0.5 + ((likely - clicked) / TEMPERATURE).sigmoid().sum(1)
    return (1 / ranks).mean()


def _batches(examples: Examples, size: int, shuffle: np.random.Generator | None) -> Iterator[dict[str, Tensor]]:
    order = np.arange(len(examples)) if shuffle is None else shuffle.permutation(len(examples))
    for first in range(0, len(order), size):
        yield _part(examples, order[first : first + size])


def _part(examples: Examples, places: Any) -> dict[str, Tensor]:
    features = torch.from_numpy(examples.features[:, places])
    clicked = torch.from_numpy(examples.clicked[places])
    here = torch.zeros(features.shape[1:])
    known = (clicked >= 0).nonzero()[:, 0]
    here[known, clicked[known]] = 1.0
    return {
        "features": features,
        "profiles": torch.from_numpy(examples.profiles[:, places]),
        "next_item": torch.from_numpy(examples.next_item[places]),
        "after_click": torch.from_numpy(examples.after_click[places]),
        "here": here,
    }


def _of(settings: Recommend, scales: int) -> dict[str, Tensor]:
    shares = torch.tensor(settings.profile_shares or [1.0] * scales)
    profile = settings.profile_weight * shares / shares.sum()
    weights = {name: torch.tensor(float(getattr(settings, name))) for name in SCALARS} | {"profile": profile}
    return {name: weight.clamp_min(LEAST) for name, weight in weights.items()}


def _with(settings: Recommend, weights: RankWeights) -> Recommend:
    return settings.model_copy(update=msgspec.structs.asdict(weights))


def _quality(found: Mapping[str, float]) -> dict[str, float]:
    return {"all": found["all"], "unseen": found.get("unseen", found["all"])}


def _shown(quality: Mapping[str, float]) -> str:
    return ", ".join(f"map@5 {name} {value:.4f}" for name, value in quality.items())


def _rounded(value: float | list[float]) -> str:
    return " : ".join(f"{each:.4g}" for each in (value if isinstance(value, list) else [value]))


def _day(time: int) -> str:
    return datetime.fromtimestamp(time / 1000, UTC).strftime("%Y-%m-%d %H:%M UTC")
