"""Each option of training does something: a seeded BERT of two layers, a few batches of a few words."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from tiny_model import WORDS
from torch import nn

from model_export.classify import Classifier
from model_export.contrast import Loss
from model_export.export import SentenceClassifier, load_base
from model_export.learner import Adversary, Shuffled, fit, set_dropout
from model_export.lowrank import adapt
from model_export.options import Options, TrainingError
from model_export.pairs import pad

QUERIES = [f"{a} {b}" for a in WORDS[:8] for b in WORDS[8:12]]
TARGETS = [number % 2 for number in range(len(QUERIES))]


@dataclass
class Learned:
    module: Classifier
    log: list[dict[str, float]]
    folder: Path

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        return {name: weight.detach().clone() for name, weight in self.module.state_dict().items()}

    def logged(self, name: str) -> list[float]:
        return [entry[name] for entry in self.log if name in entry]


def classifier(base: Path, dropout: float = 0.0) -> tuple[Classifier, Any]:
    loaded = load_base(str(base))
    loaded.encoder.pooler = None
    torch.manual_seed(1)
    made = SentenceClassifier(loaded.encoder, loaded.pooling, 2, 32)
    set_dropout(made, dropout)
    return Classifier(made), loaded


@pytest.fixture
def learn(tiny_base: Path, tmp_path: Path) -> Callable[..., Learned]:
    """Train the tiny classifier with some options; `order` is the batch by which the examples are shuffled."""

    def run(*, order: int = 8, validate: Callable[[], dict[str, float]] | None = None, name: str = "run", **said: Any) -> Learned:
        defaults = {"epochs": 2, "batch_size": 8, "learning_rate": 1e-3, "dropout": 0.0, "precision": "fp32", "tracker": "none"}
        options = Options(**(defaults | {"runs": tmp_path, "progress": False} | said))
        module, base = classifier(tiny_base, options.dropout)

        def collate(batch: list[tuple[str, int]]) -> dict[str, torch.Tensor]:
            ids, mask = pad(base.tokenizer, [query for query, _ in batch])
            return {"input_ids": ids, "attention_mask": mask, "target": torch.tensor([target for _, target in batch])}

        examples = Shuffled(
            len(QUERIES), lambda n, chance: (QUERIES[n], TARGETS[n]), [1] * len(QUERIES), batch=order, seed=options.seed
        )
        checks = validate or (lambda: {"right": 0.0})
        words = base.encoder.embeddings.word_embeddings
        log = fit(module, examples, collate, checks, options, tmp_path / name, metric="right", words=words)
        return Learned(module, log, tmp_path / name)

    return run


def equal(a: Learned, b: Learned) -> bool:
    return all(torch.equal(a.weights[name], b.weights[name]) for name in a.weights)


class TestTheSchedule:
    def test_warms_up_and_falls(self, learn: Callable[..., Learned]) -> None:
        rates = learn(epochs=4, warm_up=0.5).logged("learning_rate")
        top = int(np.argmax(rates))
        assert 6 <= top <= 9
        assert all(a < b for a, b in zip(rates[:top], rates[1 : top + 1], strict=True))
        assert all(a > b for a, b in zip(rates[top:], rates[top + 1 :], strict=False))
        assert max(rates) == pytest.approx(1e-3, rel=0.2)

    def test_is_the_one_that_was_asked_for(self, learn: Callable[..., Learned]) -> None:
        linear, cosine, constant = (
            learn(schedule=schedule, warm_up=0.0, name=schedule).logged("learning_rate")
            for schedule in ("linear", "cosine", "constant")
        )
        assert set(constant) == {1e-3}
        assert np.std(np.diff(linear)) < 1e-9 < np.std(np.diff(cosine))


def test_accumulated_batches_make_the_step_of_one_large_batch(learn: Callable[..., Learned]) -> None:
    whole = learn(order=16, batch_size=16, name="whole")
    parts = learn(order=16, batch_size=8, accumulate=2, name="parts")
    single = learn(order=16, batch_size=8, name="single")
    for name, weight in whole.weights.items():
        torch.testing.assert_close(parts.weights[name], weight, atol=2e-5, rtol=1e-3)
    assert not equal(single, parts)
    assert len(single.logged("learning_rate")) == 2 * len(parts.logged("learning_rate"))


def test_weight_decay_shrinks_the_weights(learn: Callable[..., Learned]) -> None:
    def norm(learned: Learned) -> float:
        return float(sum(w.norm() for name, w in learned.weights.items() if name.endswith("dense.weight")))

    assert norm(learn(weight_decay=10.0, name="decayed")) < 0.99 * norm(learn(weight_decay=0.0, name="kept"))


def test_dropout_is_the_one_asked_for_everywhere_in_the_encoder(tiny_base: Path) -> None:
    module, base = classifier(tiny_base, 0.4)
    ids, mask = pad(base.tokenizer, ["red shoes"])
    module.train()
    with torch.no_grad():
        assert not torch.equal(module.classifier(ids, mask), module.classifier(ids, mask))
        set_dropout(module, 0.0)
        assert torch.equal(module.classifier(ids, mask), module.classifier(ids, mask))


def test_bf16_computes_products_in_bf16_and_keeps_the_weights_in_fp32(learn: Callable[..., Learned]) -> None:
    seen: set[torch.dtype] = set()
    plain = nn.Linear.forward

    def watched(self: nn.Linear, x: torch.Tensor) -> torch.Tensor:
        result = plain(self, x)
        seen.add(result.dtype)
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.Linear, "forward", watched)
        full = learn(precision="fp32", name="fp32")
        assert seen == {torch.float32}
        mixed = learn(precision="bf16", name="bf16")
    assert torch.bfloat16 in seen
    assert {weight.dtype for name, weight in mixed.weights.items() if weight.is_floating_point()} == {torch.float32}
    assert not equal(full, mixed)


class TestTheSeed:
    def test_decides_the_weights(self, learn: Callable[..., Learned]) -> None:
        first, again, other = (learn(dropout=0.1, seed=seed, name=f"{n}") for n, seed in enumerate((3, 3, 4)))
        assert equal(first, again)
        assert not equal(first, other)

    def test_orders_the_examples_anew_in_each_epoch_and_each_comes_once(self) -> None:
        lengths = [n % 7 for n in range(50)]
        examples = Shuffled(50, lambda n, chance: (n, chance.random()), lengths, batch=8, seed=0)
        orders = []
        for epoch in (0, 1, 0):
            examples.set_epoch(epoch)
            orders.append([examples[place] for place in range(50)])
        assert orders[0] == orders[2] != orders[1]
        assert dict(orders[0]).keys() == set(range(50))
        assert dict(orders[0]) != dict(orders[1])  # nor does chance deal alike

    def test_puts_examples_of_about_one_length_into_a_batch(self) -> None:
        lengths = [n % 20 for n in range(800)]
        examples = Shuffled(800, lambda n, chance: n, lengths, batch=8, seed=0)
        batches = [[lengths[examples[place]] for place in range(first, first + 8)] for first in range(0, 800, 8)]
        assert np.mean([max(batch) - min(batch) for batch in batches]) < 2
        assert batches != sorted(batches)  # long and short batches take turns


class TestEarlyStopping:
    def test_ends_with_the_weights_of_the_best_validation(self, learn: Callable[..., Learned]) -> None:
        qualities = iter([0.5, 0.7, 0.6, 0.6, 0.9, 0.9])
        stopped = learn(epochs=6, patience=2, schedule="constant", validate=lambda: {"right": next(qualities)}, name="stopped")
        assert stopped.logged("eval_right") == [0.5, 0.7, 0.6, 0.6]
        best = iter([0.5, 0.7])
        # The warm-up is a share of all the steps planned: of these two epochs, it is thrice as long a share.
        two = learn(epochs=2, warm_up=0.3, schedule="constant", validate=lambda: {"right": next(best)}, name="two")
        assert equal(stopped, two)


class TestFgm:
    def test_moves_each_text_by_the_length_against_it(self, tiny_base: Path) -> None:
        module, base = classifier(tiny_base)
        module.eval()
        adversary = Adversary(base.encoder.embeddings.word_embeddings, 0.25)
        seen: list[torch.Tensor] = []
        base.encoder.embeddings.word_embeddings.register_forward_hook(lambda m, i, output: seen.append(output.detach().clone()))
        ids, mask = pad(base.tokenizer, QUERIES[:4])
        batch = {"input_ids": ids, "attention_mask": mask, "target": torch.tensor(TARGETS[:4])}

        def loss() -> torch.Tensor:
            found: Loss = module(**batch)
            assert found.loss is not None
            return found.loss

        before = loss()
        before.backward()
        with adversary:
            after = loss()
        torch.testing.assert_close((seen[1] - seen[0]).flatten(1).norm(dim=1), torch.full((4,), 0.25))
        assert after > before
        torch.testing.assert_close(loss(), before)

    @pytest.mark.parametrize("method", ["full", "lora"])
    def test_changes_what_is_learned(self, learn: Callable[..., Learned], method: str) -> None:
        plain, hardened = (learn(method=method, adversarial=a, name=f"a{a}") for a in (0.0, 0.5))
        assert not equal(plain, hardened)


class TestLowRank:
    @pytest.mark.parametrize("method", ["lora", "adalora"])
    def test_trains_few_parameters_and_merges_to_the_same_outputs(self, tiny_base: Path, tmp_path: Path, method: str) -> None:
        module, base = classifier(tiny_base)
        whole = sum(p.numel() for p in module.parameters())
        adapted = adapt(module, Options(method=method, rank=1, runs=tmp_path), 100)
        trained = {name: p for name, p in adapted.named_parameters() if p.requires_grad}
        assert sum(p.numel() for p in trained.values()) < 0.2 * whole
        assert all("lora_" in name or ".head." in name for name in trained)
        with torch.no_grad():
            for number, p in enumerate(trained.values()):
                p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(number)) * 0.1)
        ids, mask = pad(base.tokenizer, QUERIES)
        adapted.eval()
        with torch.no_grad():
            before = module.classifier(ids, mask)
            merged = adapted.merge_and_unload()
            assert merged is module
            torch.testing.assert_close(module.classifier(ids, mask), before, atol=1e-5, rtol=1e-5)
        assert not [name for name, _ in module.named_parameters() if "lora" in name]

    def test_lora_changes_each_matrix_by_one_of_its_rank(self, learn: Callable[..., Learned], tiny_base: Path) -> None:
        learned = learn(method="lora", rank=2, epochs=3)
        start = classifier(tiny_base)[0].state_dict()
        changes = {name: w - start[name] for name, w in learned.weights.items() if name.endswith("query.weight")}
        assert changes
        assert {int(torch.linalg.matrix_rank(change, rtol=1e-3)) for change in changes.values()} == {2}
        assert torch.equal(
            learned.weights["classifier.vectors.encoder.embeddings.word_embeddings.weight"],
            start["classifier.vectors.encoder.embeddings.word_embeddings.weight"],
        )
        assert not torch.equal(learned.weights["classifier.head.weight"], start["classifier.head.weight"])

    def test_adalora_gives_some_matrices_higher_ranks_than_others(self, learn: Callable[..., Learned], tiny_base: Path) -> None:
        rising = iter(range(100))  # the last epoch is the best, when ranks have come down
        learned = learn(method="adalora", rank=4, epochs=6, learning_rate=1e-2, validate=lambda: {"right": float(next(rising))})
        start = classifier(tiny_base)[0].state_dict()
        ranks = [
            int(torch.linalg.matrix_rank(weight - start[name], rtol=1e-4))
            for name, weight in learned.weights.items()
            if "encoder.layer" in name and weight.dim() == 2
        ]
        assert len(ranks) == 12
        assert max(ranks) > min(ranks)
        assert max(ranks) <= 6
        assert sum(ranks) <= 4 * 12

    def test_adalora_whose_ranks_did_not_move_is_an_error(self, learn: Callable[..., Learned]) -> None:
        with pytest.raises(TrainingError, match="ranks did not move"), pytest.MonkeyPatch.context() as patch:
            patch.setattr("model_export.lowrank.Budget.on_optimizer_step", lambda *args, **kwargs: None)
            learn(method="adalora", rank=4)


class TestAResumedTraining:
    @pytest.mark.parametrize(
        "said",
        [
            {"dropout": 0.1, "adversarial": 0.3},
            {"dropout": 0.1, "accumulate": 2, "schedule": "cosine"},
            {"method": "lora", "dropout": 0.1},
            {"method": "adalora", "rank": 4, "learning_rate": 1e-2},
        ],
        ids=["full-fgm", "accumulate", "lora", "adalora"],
    )
    def test_ends_with_the_weights_of_one_that_was_not_interrupted(
        self, learn: Callable[..., Learned], said: dict[str, Any]
    ) -> None:
        def quality() -> Callable[[], dict[str, float]]:
            rising = iter(range(100))
            return lambda: {"right": float(next(rising))}

        whole = learn(epochs=6, validate=quality(), name="whole", **said)
        calls = iter(range(100))

        def interrupted() -> dict[str, float]:
            number = next(calls)
            if number == 3:
                raise KeyboardInterrupt
            return {"right": float(number)}

        with pytest.raises(KeyboardInterrupt):
            learn(epochs=6, validate=interrupted, name="parts", **said)
        later = iter(range(3, 100))
        resumed = learn(epochs=6, validate=lambda: {"right": float(next(later))}, name="parts", resume=True, **said)
        assert equal(whole, resumed)
        assert len(resumed.logged("eval_right")) == 6

    def test_needs_a_checkpoint(self, learn: Callable[..., Learned]) -> None:
        with pytest.raises(TrainingError, match="no checkpoint"):
            learn(resume=True)


class TestTheTracker:
    def test_is_tensorboard_with_the_curves(self, learn: Callable[..., Learned]) -> None:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        learned = learn(tracker="tensorboard")
        (file,) = learned.folder.rglob("events.out.tfevents.*")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            events = EventAccumulator(str(file)).Reload()
        assert {"train/loss", "train/learning_rate", "eval/right"} <= set(events.Tags()["scalars"])

    def test_that_is_not_installed_is_an_error(self, learn: Callable[..., Learned]) -> None:
        with pytest.raises(TrainingError, match="the package mlflow is not installed"), pytest.MonkeyPatch.context() as patch:
            patch.setattr("model_export.learner.get_available_reporting_integrations", lambda: ["tensorboard"])
            learn(tracker="mlflow")


def test_examples_are_misspelt_anew_but_alike_after_a_restart() -> None:
    examples = Shuffled(1, lambda n, chance: chance.random(), [1], batch=1, seed=5)
    first = examples[0]
    examples.set_epoch(1)
    assert examples[0] != first
    again = Shuffled(1, lambda n, chance: chance.random(), [1], batch=1, seed=5)
    assert again[0] == first
    assert Random("5 0 0").random() == first
