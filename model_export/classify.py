"""`model-export train --task classify`: what kind of query is this? Intents that people labelled, or click and no click."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import NamedTuple

import msgspec
import numpy as np
import torch
from rich.console import Console
from sklearn.metrics import precision_recall_fscore_support
from torch import Tensor, nn

from model_export.contrast import Loss, vectors
from model_export.data import DataError, Log, Source
from model_export.export import PACKAGED_NAME, Base, SentenceClassifier, Servable, load_base
from model_export.folder import publish
from model_export.gates import check_variants
from model_export.learner import Shuffled, fit, set_dropout
from model_export.noise import misspell
from model_export.options import Options
from model_export.pairs import pad
from stream.encoder import Encoder
from stream.encoder.manifest import Manifest, Training
from stream.events import Click, Search
from stream.lines import LinesError, one_of, read_lines
from stream.pipeline import QUERY_MEMORY_MS

VALIDATION = 0.05  # of the labelled queries, where no test file is given twice that
SMOOTHING = 0.1  # of the labels (Szegedy et al. 2016): people who label queries do not always agree
SCALE = 16.0  # of the first head's rows: how sure it is of a query at the middle of its class
CALIBRATION_TEXTS = 200
DEFAULTS = {"epochs": 2, "batch_size": 64, "typing_noise": 0.1}
RATES = {"full": 2e-4, "lora": 2e-3, "adalora": 4e-3}  # low-rank updates start from nothing and need larger steps

CARD = """\
## Training

Learned from {learned} labelled queries with cross-entropy, chosen by the accuracy on {validation} others{tested}.

| variant | accuracy on the {judged} of them |
|---|---|
{variants}

Options: {options}

Left out: {left_out}.

| class (int8, CPU) | precision | recall | F1 | queries |
|---|---|---|---|---|
{classes}
"""


class Labelled(msgspec.Struct, frozen=True):
    """A line of `train.jsonl` or `test.jsonl`: a query and the label that it was given."""

    query: str
    intent: str


class Examples(NamedTuple):
    """Labelled queries to learn from, to validate by, and to report on; and what was left out of them."""

    learn: list[Labelled]
    validate: list[Labelled]
    test: list[Labelled]
    since: int | None
    until: int | None
    left_out: str


class Classifier(nn.Module):
    """A sentence classifier and its loss: cross-entropy with smoothed labels."""

    def __init__(self, classifier: SentenceClassifier) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, input_ids: Tensor, attention_mask: Tensor, target: Tensor) -> Loss:
        """Return the loss of a batch of token ids and mask (B, length) with the classes `target` (B,)."""
        logits = self.classifier(input_ids, attention_mask).float()
        return Loss(loss=nn.functional.cross_entropy(logits, target, label_smoothing=SMOOTHING))


def train(source: Source, output: Path, options: Options, console: Console) -> Manifest:
    """Train a classifier and write it as the model folder `output`.

    The data are `train.jsonl` and perhaps `test.jsonl` with `query` and `intent`; or a log, whose searches are classed by whether
    a click followed.

    Raises:
        DataError, ExportError, OutputError, VerificationError, TrainingError: as they say.
    """
    options = options.with_defaults(DEFAULTS | {"learning_rate": RATES[options.method]})
    examples = _read(source, options.seed)
    labels = sorted({example.intent for example in examples.learn})
    if len(labels) < 2:
        raise DataError(f"there is nothing to tell apart: all queries are labelled {labels}")
    console.print(
        f"{len(examples.learn)} queries of {len(labels)} classes to learn from, {len(examples.validate)} to validate by"
    )
    base = load_base(options.base)
    model = _learn(base, examples, labels, options, console)

    def verdict(folder: Path, manifest: Manifest) -> tuple[Training, str]:
        judged = examples.test or examples.validate
        held_out = {}
        for variant in manifest.variants:
            guesses = _guess(Encoder(folder, variant=variant, cache_size=0, task="classification"), judged)
            held_out[variant] = float(np.mean([g == e.intent for g, e in zip(guesses, judged, strict=True)]))
            if variant == "int8":
                classes = _report(judged, guesses, labels)
        shown = [f"| {variant} | {accuracy:.4f} |" for variant, accuracy in held_out.items()]
        console.print("accuracy on held-out queries:", ", ".join(f"{v} {a:.4f}" for v, a in held_out.items()))
        check_variants("accuracy", held_out)
        told = options.told()
        card = CARD.format(
            learned=len(examples.learn),
            validation=len(examples.validate),
            tested=f", and reported on {len(examples.test)} that it never saw" if examples.test else "",
            judged="last" if examples.test else "second",
            variants="\n".join(shown),
            options=", ".join(f"{name} {value}" for name, value in told.items()),
            left_out=examples.left_out,
            classes="\n".join(classes),
        )
        console.print("\n".join(classes), markup=False, highlight=False)
        training = Training(
            since=examples.since, until=examples.until, metric="accuracy", held_out=held_out, options=told, metrics={}
        )
        return training, card

    texts = [example.query for example in examples.learn][:: max(1, len(examples.learn) // CALIBRATION_TEXTS)]
    name = options.base or PACKAGED_NAME
    return publish(model, output, base=name, texts=texts, judge=verdict, progress=lambda step: console.print(step))


def _learn(base: Base, examples: Examples, labels: list[str], options: Options, console: Console) -> Servable:
    queries = [example.query for example in examples.learn]
    targets = [labels.index(example.intent) for example in examples.learn]
    base.encoder.pooler = None  # BERT's own, of the first token: nothing reads it, and it would have no gradient
    dimension = int(base.encoder.config.hidden_size)
    torch.manual_seed(options.seed)
    classifier = SentenceClassifier(base.encoder, base.pooling, len(labels), dimension)
    set_dropout(classifier, options.dropout)
    with torch.no_grad():  # begin with the nearest class mean: it is right more often than not before any training
        known = vectors(base, queries)
        for label in range(len(labels)):
            mean = known[[row for row, target in enumerate(targets) if target == label]].mean(axis=0)
            classifier.head.weight[label] = torch.from_numpy(SCALE * mean / np.linalg.norm(mean))
        classifier.head.bias.zero_()
    module = Classifier(classifier)
    noise = options.typing_noise or 0.0
    assert options.batch_size is not None

    def example(number: int, random: Random) -> tuple[str, int]:
        query = queries[number]
        return misspell(query, random) if random.random() < noise else query, targets[number]

    def collate(batch: list[tuple[str, int]]) -> dict[str, Tensor]:
        ids, mask = pad(base.tokenizer, [query for query, _ in batch])
        return {"input_ids": ids, "attention_mask": mask, "target": torch.tensor([target for _, target in batch])}

    def validate() -> dict[str, float]:
        device = classifier.head.bias.device
        right = 0
        for first in range(0, len(examples.validate), 256):
            batch = examples.validate[first : first + 256]
            ids, mask = pad(base.tokenizer, [e.query for e in batch])
            best = module.classifier(ids.to(device), mask.to(device)).argmax(dim=1).tolist()
            right += sum(labels[place] == e.intent for place, e in zip(best, batch, strict=True))
        accuracy = right / len(examples.validate)
        console.print(f"accuracy on validation {accuracy:.4f}")
        return {"accuracy": accuracy}

    lengths = [len(encoding.ids) for encoding in base.tokenizer.encode_batch_fast(queries)]
    shuffled = Shuffled(len(queries), example, lengths, batch=options.batch_size, seed=options.seed)
    words = base.encoder.embeddings.word_embeddings
    fit(module, shuffled, collate, validate, options, options.runs / "classify", metric="accuracy", words=words)
    set_dropout(classifier, 0.0)
    return Servable(base, module.classifier, "classification", tuple(labels))


def _read(source: Source, seed: int) -> Examples:
    folder = source.folder
    if folder is None:
        return _from_log(source.read())
    try:
        train, test = one_of(folder, "train"), one_of(folder, "test")
        if train is None:
            return _from_log(source.read())
        known, tested = _labelled(train), [] if test is None else _labelled(test)
    except LinesError as error:
        raise DataError(str(error)) from error
    Random(seed).shuffle(known)
    held = max(1, round(len(known) * VALIDATION * (1 if tested else 2)))
    learn, validate = known[held:], known[:held]
    classes = {example.intent for example in learn}
    kept = [e for e in tested if e.intent in classes]
    left_out = f"{len(tested) - len(kept)} test queries of classes without an example; labelled queries have no event time"
    return Examples(learn, [e for e in validate if e.intent in classes], kept, None, None, left_out)


def _labelled(path: Path) -> list[Labelled]:
    decoder = msgspec.json.Decoder(Labelled)
    found = []
    for number, line in enumerate(read_lines(path), 1):
        try:
            found.append(decoder.decode(line))
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise DataError(f"{path}, line {number}: {error}") from error
    return found


def _from_log(log: Log) -> Examples:
    """Label each search by whether the user clicked within half an hour and before searching again; split by time."""
    clicked: dict[int, bool] = {}
    searches: list[tuple[int, str]] = []
    last: dict[str, tuple[int, int]] = {}
    for event in log.events:
        behaviour = event.behaviour
        if isinstance(behaviour, Search):
            last[behaviour.user_id] = event.time, len(searches)
            clicked[len(searches)] = False
            searches.append((event.time, behaviour.query))
        elif isinstance(behaviour, Click) and (found := last.get(behaviour.user_id)) and event.time - found[0] <= QUERY_MEMORY_MS:
            clicked[found[1]] = True
    split = log.time_at(1 - 2 * VALIDATION)
    past: list[Labelled] = []
    future: list[Labelled] = []
    for number, (time, query) in enumerate(searches):
        if query.strip():
            (past if time < split else future).append(Labelled(query, "click" if clicked[number] else "no click"))
    if not past or not future:
        raise DataError("there are too few searches to learn from some and validate by later ones")
    left_out = f"searches without text, and {log.refused} records that the worker would refuse"
    return Examples(past, future, [], log.events[0].time, log.events[-1].time, left_out)


def _guess(encoder: Encoder, examples: Sequence[Labelled]) -> list[str]:
    best = encoder.encode([example.query for example in examples]).argmax(axis=1)
    return [encoder.manifest.labels[place] for place in best.tolist()]


def _report(examples: Sequence[Labelled], guesses: Sequence[str], labels: Sequence[str]) -> list[str]:
    """Return a table row for each class."""
    truth = [example.intent for example in examples]
    columns = precision_recall_fscore_support(truth, guesses, labels=labels, zero_division=0.0)
    return [f"| {label} | {p:.3f} | {r:.3f} | {f:.3f} | {n} |" for label, p, r, f, n in zip(labels, *columns, strict=True)]
