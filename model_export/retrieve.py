"""`model-export train --task retrieve`: the encoder learns what people meant by what they typed."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from model_export.contrast import Contrast, blend, prune, vectors
from model_export.data import DataError, Log, Source
from model_export.export import PACKAGED_NAME, Base, Servable, load_base
from model_export.folder import publish
from model_export.gates import check, check_variants
from model_export.judge import judge
from model_export.learner import Shuffled, fit, set_dropout
from model_export.options import Options, TrainingError
from model_export.pairs import Pairs, asked, hard_negatives, make_pairs
from model_export.settings import PRUNED_GATE
from stream.encoder import Encoder
from stream.encoder.manifest import Manifest, Training
from stream.recommend.catalogue import item_text
from stream.recommend.ngrams import normalise
from stream.settings import Settings, read_settings

PAST = 0.9  # of the events are learned from; what follows validates
BLENDS = (0.25, 0.5, 0.75, 1.0)  # of the trained weights with those they started from
HARD = 8  # nearest items that do not belong to a query: negatives are drawn from them
DEFAULTS = {"epochs": 3, "batch_size": 64, "learning_rate": 5e-5, "typing_noise": 0.3}
CALIBRATION_TEXTS = 200

CARD = """\
## Training

Learned from {pairs} pairs of a query and the item clicked for it, or of two items clicked in succession, out of {events}
searches and clicks from {since} to {until} on {items} items. Of all weights on the line between the model it started from and the
trained one, those at {share:.0%} were best for the whole recommender on the {held_out} clicks after {split}.

| {metric} on those clicks | all | unseen queries |
|---|---|---|
| before training | {before[all]:.4f} | {before[unseen]:.4f} |
| this model, fp32 | {after[all]:.4f} | {after[unseen]:.4f} |
| this model, int8 | {int8[all]:.4f} | {int8[unseen]:.4f} |

Options: {options}

Left out: events from {until} on, {refused} records that the worker would refuse, and clicks without a query or on items that are
not in the catalogue. The validation chose the weights, so that its numbers are a little better than what is to be expected.
"""


@dataclass(frozen=True)
class _Found:
    """A trained encoder and how good the recommender is with it."""

    base: Base
    quality: dict[str, float]
    share: float = 1.0


def train(source: Source, output: Path, options: Options, console: Console) -> Manifest:
    """Train an encoder on a log and write it as the model folder `output`.

    Raises:
        DataError, ExportError, OutputError, VerificationError: as they say.
        TrainingError: the recommender would not be better with it than before, or a variant loses too much.
    """
    options = options.with_defaults(DEFAULTS)
    settings = read_settings()
    log = source.read()
    split = log.time_at(PAST)
    past = log.before(split)
    base = load_base(options.base)
    study = _Study(log, split, settings)
    console.print(f"{len(past.events)} events to learn from, {len(log.events) - len(past.events)} to judge by")
    before = study.quality(lambda texts: vectors(base, texts))
    console.print(f"before: {_shown(before)}")
    whole = _full(past, base, study, before, options, console)
    chosen = whole if options.layers is None else _pruned(past, whole, study, options, console)

    def verdict(folder: Path, manifest: Manifest) -> tuple[Training, str]:
        quality = {variant: study.quality(Encoder(folder, variant=variant, cache_size=0).encode) for variant in manifest.variants}
        held_out = {variant: found["all"] for variant, found in quality.items()}
        check_variants("map@5", held_out)
        told = options.told()
        first, last = past.events[0].time, past.events[-1].time
        training = Training(
            since=first,
            until=last,
            metric="map@5",
            held_out=held_out,
            options=told,
            metrics={f"{name} before": value for name, value in before.items()} | chosen.quality,
        )
        card = CARD.format(
            pairs=len(make_pairs(past, study.texts)),
            events=len(past.events),
            since=_day(first),
            until=_day(split),
            items=len(log.items),
            share=chosen.share,
            held_out=len(asked(log.since(split))),
            split=_day(split),
            metric="map@5",
            before=before,
            after=quality["fp32"],
            int8=quality["int8"],
            options=", ".join(f"{name} {value}" for name, value in told.items()),
            refused=log.refused,
        )
        return training, card

    texts = sorted({a.query for a in asked(past)})[:: max(1, len(study.texts) // CALIBRATION_TEXTS)][:CALIBRATION_TEXTS]
    model = Servable.encoder(chosen.base)
    name = options.base or PACKAGED_NAME
    return publish(model, output, base=name, texts=texts, judge=verdict, progress=lambda step: console.print(step))


@dataclass
class _Study:
    """The log with its split, and what can be measured on it."""

    log: Log
    split: int
    settings: Settings

    def __post_init__(self) -> None:
        self.texts = {item_id: item_text(item) for item_id, item in self.log.items.items()}
        known = {normalise(a.query) for a in asked(self.log.before(self.split))}
        future = asked(self.log.since(self.split))
        # Those that were never asked before, as that is what the encoder is for; all of them where there are too few to tell.
        unseen = [a for a in future if normalise(a.query) not in known]
        self.questions = unseen if len(unseen) >= 100 else future
        if not self.questions:
            raise DataError("no click after the split answers a query: there is nothing to validate by")

    def quality(self, encode: Callable[[Sequence[str]], NDArray[np.float32]]) -> dict[str, float]:
        """Return the recommender's map@5 on the future with these vectors, over all clicks and over unseen queries."""
        found = judge(self.log, self.split, encode, self.settings)
        return {"all": found["all"], "unseen": found.get("unseen", found["all"])}

    def by_text(self, base: Base) -> dict[str, float]:
        """Return map@5 of the items' texts ranked by similarity to the query alone: quick enough for each epoch.

        Over queries never asked before, or all where those are too few.
        """
        ids = list(self.texts)
        items = vectors(base, [self.texts[item] for item in ids])
        queries = sorted({a.query for a in self.questions})
        best = np.argsort(-(vectors(base, queries) @ items.T), axis=1, kind="stable")[:, :5].tolist()
        ranked = {query: [ids[place] for place in places] for query, places in zip(queries, best, strict=True)}
        gains = [1 / (ranked[a.query].index(a.item_id) + 1) if a.item_id in ranked[a.query] else 0.0 for a in self.questions]
        return {"text": float(np.mean(gains))}


def _full(past: Log, base: Base, study: _Study, before: Mapping[str, float], options: Options, console: Console) -> _Found:
    """Train all layers; return the blend with the base that serves the recommender best."""
    start = {name: weight.clone() for name, weight in base.encoder.state_dict().items()}
    trained = Base(base.name, copy.deepcopy(base.encoder), base.tokenizer, base.pooling, base.max_length)
    _learn(past, trained, study, options, options.runs / "whole", None, console)
    end = {name: weight.clone() for name, weight in trained.encoder.state_dict().items()}
    best: _Found | None = None
    for share in BLENDS:
        trained.encoder.load_state_dict(blend(start, end, share))
        quality = study.quality(lambda texts: vectors(trained, texts))
        console.print(f"{share:.0%} of the training: {_shown(quality)}")
        better = all(quality[name] > before[name] for name in before)
        if better and (best is None or sum(quality.values()) > sum(best.quality.values())):
            best = _Found(trained, quality, share)
    if best is None:
        raise TrainingError(
            f"gate: at no share of the training is the recommender better than before, {_shown(before)}, in both. "
            f"With all of it: {_shown(quality)}. Nothing was published"
        )
    trained.encoder.load_state_dict(blend(start, end, best.share))
    return best


def _pruned(past: Log, whole: _Found, study: _Study, options: Options, console: Console) -> _Found:
    """Take layers out, and let what is left learn from the log and from the whole model."""
    assert options.layers is not None
    try:
        student = prune(whole.base, options.layers)
    except ValueError as error:
        raise TrainingError(str(error)) from error
    _learn(past, student, study, options, options.runs / f"layers-{options.layers}", whole.base, console)
    quality = study.quality(lambda texts: vectors(student, texts))
    console.print(f"{options.layers} layers: {_shown(quality)}")
    check(f"{options.layers} layers against all", "map@5", quality["all"], whole.quality["all"], PRUNED_GATE)
    return _Found(student, quality, whole.share)


def _learn(
    past: Log, base: Base, study: _Study, options: Options, folder: Path, teacher: Base | None, console: Console
) -> list[dict[str, Any]]:
    pairs = make_pairs(past, study.texts)
    if not pairs:
        raise DataError("no click before the split answers a query: there is nothing to learn from")
    ids = list(study.texts)
    start = teacher or base
    anchors = {pair.anchor: row for row, pair in enumerate(dict.fromkeys(pairs))}
    anchor_texts = sorted(anchors)
    rows = dict(zip(anchor_texts, vectors(start, anchor_texts), strict=True))
    near = hard_negatives(pairs, np.stack([rows[p.anchor] for p in pairs]), vectors(start, list(study.texts.values())), ids, HARD)
    assert options.typing_noise is not None
    made = Pairs(pairs, study.texts, near, base.tokenizer, noise=options.typing_noise)
    assert options.batch_size is not None
    lengths = [len(base.tokenizer.encode(pair.anchor).ids) for pair in pairs]
    examples = Shuffled(len(pairs), made.example, lengths, batch=options.batch_size, seed=options.seed)
    base.encoder.pooler = None  # BERT's own, of the first token: nothing reads it, and it would have no gradient
    set_dropout(base.encoder, options.dropout)
    module = Contrast(base, None if teacher is None else Servable.encoder(teacher).module.eval())
    console.print(f"{len(pairs)} pairs, {sum(p.requires_grad for p in module.parameters())} matrices and vectors to train")

    def validate() -> dict[str, float]:
        found = study.by_text(base)
        console.print(f"validation: {_shown(found)}")
        return found

    return fit(
        module,
        examples,
        made.collate,
        validate,
        options,
        folder,
        metric="text",
        words=base.encoder.embeddings.word_embeddings,
    )


def _shown(quality: Mapping[str, float]) -> str:
    return ", ".join(f"map@5 {name} {value:.4f}" for name, value in quality.items())


def _day(time: int) -> str:
    return datetime.fromtimestamp(time / 1000, UTC).strftime("%Y-%m-%d %H:%M UTC")
