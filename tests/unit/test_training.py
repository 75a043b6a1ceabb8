"""Retrieve and classify: what is learned from, the gates, and the folders that come out; on a seeded BERT of two layers."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_model import write_base
from typer.testing import CliRunner

from model_export.cli import app
from model_export.contrast import Contrast, blend, prune, vectors
from model_export.data import Source
from model_export.export import Servable, load_base
from model_export.folder import publish
from model_export.gates import check_variants
from model_export.judge import judge
from model_export.manifest import amend
from model_export.noise import misspell
from model_export.options import TrainingError
from model_export.pairs import Pairs, hard_negatives, make_pairs, succeeded
from model_export.verify import verify
from stream.encoder import Encoder, ModelFolderError, read_manifest
from stream.recommend.catalogue import item_text
from stream.settings import Settings

NOON = 1_700_000_000_000
MINUTE = 60_000
WORDS = ["garden hose", "blue shoe", "space game", "coffee grinder", "red shoes", "war game", "running shoe", "running order"]


@pytest.fixture(scope="module")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("base") / "tiny-bert")


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty items of eight kinds; who asks for letters that stand for a kind clicks an item of it, another the next time."""
    folder = tmp_path_factory.mktemp("shop")
    random = Random(0)
    codes = [f"{a}{b}" for a, b in zip("qxzvwkjy", "zqvxkwyj", strict=True)]
    items = [{"item_id": f"{k}-{n}", "title": f"{WORDS[k]} {n}"} for k in range(8) for n in range(5)]
    searches, clicks = [], []
    for n in range(600):
        kind, time, user = random.randrange(8), NOON + n * MINUTE, f"u{n}"
        query = f"{codes[kind]} {random.choice('abcdefgh')}{random.choice('abcdefgh')}{random.randrange(100)}"
        searches.append({"event_id": f"s{n}", "user_id": user, "query": query, "timestamp": time})
        for second in range(random.randint(1, 2)):
            item = f"{kind}-{random.randrange(5)}"
            clicks.append(
                {"event_id": f"c{n}-{second}", "user_id": user, "item_id": item, "timestamp": time + 1000 * (second + 1)}
            )
    for name, records in (("items", items), ("searches", searches), ("clicks", clicks)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def run(*arguments: str | Path) -> str:
    result = CliRunner().invoke(app, ["train", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    return result.output


class TestTypingNoise:
    @given(st.text("abcdefghij klmnop", min_size=2, max_size=30), st.integers())
    def test_is_one_or_two_errors(self, text: str, seed: int) -> None:
        wrong = misspell(text, Random(seed))
        assert abs(len(wrong) - len(text)) <= 2
        assert wrong

    def test_alters_most_texts_in_several_ways(self) -> None:
        found = {misspell("coffee grinder", Random(seed)) for seed in range(200)}
        assert len(found) > 50
        assert sum(misspell("hose", Random(seed)) != "hose" for seed in range(200)) > 180

    def test_meets_the_share_of_queries_asked_for_and_no_item(self, shop: Path, tiny_base: Path) -> None:
        log = Source(shop).read()
        texts = {item_id: item_text(item) for item_id, item in log.items.items()}
        pairs = make_pairs(log, texts)
        tokenizer = load_base(str(tiny_base)).tokenizer
        for share in (0.0, 0.5, 1.0):
            made = Pairs(pairs, texts, [[] for _ in pairs], tokenizer, noise=share)
            examples = [made.example(n, Random(n)) for n in range(len(pairs))]
            altered = [e.anchor != e.pair.anchor for e in examples if e.pair.is_query]
            assert np.mean(altered) == pytest.approx(share, abs=0.1)
            assert not any(e.anchor != e.pair.anchor for e in examples if not e.pair.is_query)


class TestPairs:
    def test_join_a_query_with_the_click_that_followed_and_a_click_with_the_next(self, shop: Path) -> None:
        log = Source(shop).read()
        texts = {item_id: item_text(item) for item_id, item in log.items.items()}
        pairs = make_pairs(log, texts)
        assert {pair.is_query for pair in pairs} == {True, False}
        for pair in pairs:
            assert pair.item_id in pair.positives
        for before, after in succeeded(log):
            assert before.split("-")[0] == after.split("-")[0]
            assert before != after

    def test_never_count_what_belongs_to_an_anchor_as_a_negative(self, shop: Path, tiny_base: Path) -> None:
        log = Source(shop).read()
        texts = {item_id: item_text(item) for item_id, item in log.items.items()}
        pairs = make_pairs(log, texts)
        base = load_base(str(tiny_base))
        anchors = vectors(base, [pair.anchor for pair in pairs])
        items, ids = vectors(base, list(texts.values())), list(texts)
        near = hard_negatives(pairs, anchors, items, ids, 4)
        for pair, row, found in zip(pairs, anchors, near, strict=True):
            assert len(found) == 4
            assert not pair.positives & set(found)
            others = [float(items[ids.index(i)] @ row) for i in ids if i not in pair.positives and i not in found]
            assert min(float(items[ids.index(i)] @ row) for i in found) >= max(others)
        made = Pairs(pairs, texts, near, base.tokenizer, noise=0.0)
        examples = [made.example(n, Random(n)) for n in range(24)]
        batch = made.collate(examples)
        listed = list(dict.fromkeys([*(e.pair.item_id for e in examples), *(i for e in examples for i in e.negatives)]))
        assert len(batch["item_ids"]) == len(listed) > len({e.pair.item_id for e in examples})
        for row, example in enumerate(examples):
            assert listed[int(batch["target"][row])] == example.pair.item_id
            refused = {item for item, allowed in zip(listed, batch["allowed"][row].tolist(), strict=True) if not allowed}
            assert refused == (example.pair.positives & set(listed)) - {example.pair.item_id}


class TestLayers:
    def test_are_pruned_evenly_and_the_last_is_kept(self, tmp_path: Path) -> None:
        base = load_base(str(write_base(tmp_path / "six", layers=6)))
        half = prune(base, 3)
        assert [
            id
            for id, layer in enumerate(base.encoder.encoder.layer)
            for kept in half.encoder.encoder.layer
            if torch.equal(layer.output.dense.weight, kept.output.dense.weight)
        ] == [1, 3, 5]
        assert (half.encoder.config.num_hidden_layers, base.encoder.config.num_hidden_layers) == (3, 6)
        assert not np.allclose(vectors(base, ["red shoe"]), vectors(half, ["red shoe"]))
        with pytest.raises(ValueError, match="has 6 layers"):
            prune(base, 6)

    def test_that_are_left_are_drawn_to_the_whole_model(self, tiny_base: Path, shop: Path) -> None:
        base = load_base(str(tiny_base))
        log = Source(shop).read()
        texts = {item_id: item_text(item) for item_id, item in log.items.items()}
        pairs = make_pairs(log, texts)[:32]
        batch = Pairs(pairs, texts, [[] for _ in pairs], base.tokenizer, noise=0.0)
        examples = batch.collate([batch.example(n, Random(n)) for n in range(32)])

        def closeness(teacher: torch.nn.Module | None) -> float:
            student = prune(base, 1)
            student.encoder.pooler = None
            module = Contrast(student, teacher)
            optimiser = torch.optim.AdamW(module.parameters(), 1e-3)
            for _ in range(30):
                loss = module(**examples).loss
                assert loss is not None
                loss.backward()
                optimiser.step()
                optimiser.zero_grad()
            anchors = [pair.anchor for pair in pairs]
            return float((vectors(student, anchors) * vectors(base, anchors)).sum(axis=1).mean())

        assert closeness(Servable.encoder(base).module.eval()) > closeness(None) + 0.05


def test_a_blend_lies_between_the_models(tiny_base: Path, tmp_path: Path) -> None:
    start = load_base(str(tiny_base)).encoder.state_dict()
    end = load_base(str(write_base(tmp_path / "other", seed=1))).encoder.state_dict()
    assert all(torch.equal(w, start[name]) for name, w in blend(start, end, 0.0).items())
    assert all(torch.equal(w, end[name]) for name, w in blend(start, end, 1.0).items())
    name = "encoder.layer.0.output.dense.weight"
    torch.testing.assert_close(blend(start, end, 0.25)[name], 0.75 * start[name] + 0.25 * end[name])


def test_the_judge_prefers_vectors_that_know_what_was_meant(shop: Path) -> None:
    log = Source(shop).read()
    random = np.random.default_rng(0)
    directions = np.linalg.qr(random.normal(size=(16, 16)))[0].astype(np.float32)
    kinds = {name: k for k, name in enumerate(["qz", "xq", "zv", "vx", "wk", "kw", "jy", "yj"])}

    def knowing(texts: list[str]) -> np.ndarray:
        kind = [kinds.get(text[:2], next((k for k, w in enumerate(WORDS) if text.startswith(w)), 0)) for text in texts]
        return directions[kind]

    def ignorant(texts: list[str]) -> np.ndarray:
        rows = np.random.default_rng(1).normal(size=(len(texts), 16)).astype(np.float32)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    moment = log.time_at(0.8)
    good, bad = judge(log, moment, knowing, Settings()), judge(log, moment, ignorant, Settings())
    assert set(good) == set(bad) == {"all", "unseen"}
    assert good["unseen"] > bad["unseen"] + 0.1


class TestGates:
    def test_close_on_a_variant_that_lost_too_much_and_say_by_how_much(self) -> None:
        check_variants("map@5", {"fp32": 0.5, "fp16": 0.4996, "int8": 0.498})
        with pytest.raises(
            TrainingError, match=r"int8 against fp32: map@5 .* 0\.4900, 98\.00% of 0\.5000; 99\.5% .* 0\.0075 more"
        ):
            check_variants("map@5", {"fp32": 0.5, "fp16": 0.5, "int8": 0.49})
        with pytest.raises(TrainingError, match="fp16 against fp32"):
            check_variants("map@5", {"fp32": 0.5, "fp16": 0.499, "int8": 0.5})
        with pytest.raises(TrainingError):
            check_variants("map@5", {"fp32": float("nan"), "fp16": 0.5, "int8": 0.5})

    def test_leave_the_folder_that_is_there_as_it_was(self, tiny_base: Path, tiny_model: Path, tmp_path: Path) -> None:
        folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
        before = {path.name: path.read_bytes() for path in folder.iterdir()}

        def closed(folder: Path, manifest: object) -> None:
            raise TrainingError("gate")

        with pytest.raises(TrainingError, match="gate"):
            publish(Servable.encoder(load_base(str(tiny_base))), folder, base="x", judge=closed)  # type: ignore[arg-type]
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
        assert [path.name for path in tmp_path.iterdir()] == ["model"]

    def test_close_on_a_training_that_makes_the_recommender_no_better(self, shop: Path, tiny_base: Path, tmp_path: Path) -> None:
        result = CliRunner().invoke(
            app,
            f"train --data {shop} --output {tmp_path / 'out'} --base {tiny_base} --epochs 1 --learning-rate 1e-12 --tracker none",
        )
        assert result.exit_code == 1
        assert "better than before" in result.output
        assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def trained(shop: Path, tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("retrieve") / "model"
    options = ["--epochs", "6", "--learning-rate", "2e-3", "--precision", "fp32", "--layers", "1", "--tracker", "none"]
    run("--data", shop, "--output", folder, "--base", tiny_base, "--until", "2023-11-15T06:00:00Z", *options)
    return folder


def test_several_processes_share_the_batches_and_one_publishes(shop: Path, tiny_base: Path, tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder = tmp_path / "model"
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    launch += ["--master-addr", "127.0.0.1", "--master-port", str(port), "-m", "model_export", "train"]
    options = ["--epochs", "1", "--learning-rate", "2e-3", "--precision", "fp32", "--tracker", "none", "--batch-size", "16"]
    command = [*launch, "--data", str(shop), "--output", str(folder), "--base", str(tiny_base), *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    (state,) = (tmp_path / "model-runs" / "whole").glob("checkpoint-*/trainer_state.json")
    pairs = int(re.findall(r"(\d+) pairs", done.stdout)[0])
    assert json.loads(state.read_text())["global_step"] == -(-pairs // 32)
    assert done.stdout.count("written:") == 1
    assert read_manifest(folder).training is not None


class TestRetrieve:
    def test_makes_a_folder_that_holds_what_was_promised(self, trained: Path, tiny_base: Path) -> None:
        manifest = verify(trained)
        assert manifest.fused_operators["model.onnx"]["Attention"] == 1
        assert manifest.training is not None
        assert manifest.training.held_out["int8"] >= 0.995 * manifest.training.held_out["fp32"]
        assert manifest.training.metrics["unseen"] > manifest.training.metrics["unseen before"]
        assert manifest.training.options["layers"] == 1
        assert Encoder(trained).encode(["qz"]).shape == (1, 32)

    def test_learns_from_the_past_only_and_says_so_on_the_card(self, trained: Path) -> None:
        manifest = read_manifest(trained)
        assert manifest.training is not None
        assert manifest.training.since == NOON
        assert manifest.training.until is not None
        assert manifest.training.until < NOON + 0.91 * 480 * MINUTE
        card = (trained / "README.md").read_text()
        for said in ("from 2023-11-14 22:13 UTC", "unseen queries", "Left out", "layers 1", "typing_noise 0.3"):
            assert said in card
        assert {"torch", "transformers", "peft", "accelerate"} <= set(manifest.libraries)

    def test_a_part_can_be_added_later_and_the_vectors_stay(self, trained: Path) -> None:
        before = read_manifest(trained)
        for text in ("first", "second"):
            amend(trained, lambda m: m, f"## A part\n\n{text}\n")
        assert verify(trained).version == before.version
        card = (trained / "README.md").read_text()
        assert card.count("## A part") == 1
        assert "second" in card
        assert "## Training" in card


class TestClassify:
    def test_learns_intents_and_reports_each_class(self, tiny_base: Path, tmp_path: Path) -> None:
        random = Random(0)
        kinds = {"order": "where is my order", "water": "garden hose", "play": "space war game"}

        def lines(count: int) -> str:
            chosen = [random.choice(list(kinds)) for _ in range(count)]
            asked = [" ".join(random.sample(kinds[k].split(), 2)) + f" {random.randrange(100)}" for k in chosen]
            return "".join(json.dumps({"query": q, "intent": k}) + "\n" for q, k in zip(asked, chosen, strict=True))

        (tmp_path / "train.jsonl").write_text(lines(300))
        (tmp_path / "test.jsonl").write_text(lines(60))
        folder = tmp_path / "model"
        options = ["--epochs", "4", "--learning-rate", "2e-3", "--tracker", "none"]
        said = run("--task", "classify", "--data", tmp_path, "--output", folder, "--base", tiny_base, *options)
        manifest = verify(folder)
        assert manifest.labels == ["order", "play", "water"]
        assert manifest.training is not None
        assert manifest.training.held_out["int8"] > 0.95
        encoder = Encoder(folder, task="classification")
        logits = encoder.encode(["my order is where", "garden hose 7"])
        assert [manifest.labels[place] for place in logits.argmax(axis=1)] == ["order", "water"]
        for label in manifest.labels:
            assert f"| {label} | " in (folder / "README.md").read_text()
            assert f"| {label} | " in said
        with pytest.raises(ModelFolderError, match="is for classification, not for sentence-embedding"):
            Encoder(folder)

    def test_tells_searches_that_are_followed_by_a_click_from_those_that_are_not(self, tiny_base: Path, tmp_path: Path) -> None:
        random = Random(0)
        files: dict[str, list[dict[str, object]]] = {
            "items": [{"item_id": "hose", "title": "hose"}],
            "searches": [],
            "clicks": [],
        }
        for n in range(300):
            found, user, time = random.random() < 0.5, f"u{n % 7}", NOON + n * 40 * MINUTE
            query = random.choice(["garden hose", "red hose"] if found else ["where is", "of and"]) + f" {n}"
            files["searches"].append({"event_id": f"s{n}", "user_id": user, "query": query, "timestamp": time})
            if found:
                files["clicks"].append({"event_id": f"c{n}", "user_id": user, "item_id": "hose", "timestamp": time + MINUTE})
        for name, records in files.items():
            (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        folder = tmp_path / "model"
        options = ["--epochs", "4", "--learning-rate", "2e-3", "--tracker", "none"]
        run("--task", "classify", "--data", tmp_path, "--output", folder, "--base", tiny_base, *options)
        manifest = verify(folder)
        assert manifest.labels == ["click", "no click"]
        assert manifest.training is not None
        assert manifest.training.held_out["int8"] > 0.95
        assert manifest.training.since == NOON


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("--output x", "either --data DIR or --from-topics"),
        ("--output x --data . --from-topics", "either --data DIR or --from-topics"),
        ("--output x --data . --dropout 1.5", "--dropout: "),
        ("--output x --data . --until noon", "'noon' is no time"),
        ("--output x --data nowhere", "nowhere is not a folder"),
    ],
)
def test_a_wrong_command_says_what_to_change(arguments: str, said: str) -> None:
    result = CliRunner().invoke(app, f"train {arguments}")
    assert result.exit_code == 1
    assert said in result.output.replace("\n", " ")
