"""Retrieve: the layers that are kept, the judge, the gates, and the folder that comes out; on a seeded BERT of two layers."""

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
from tiny_model import write_base
from training import MINUTE, NOON, WORDS, train, write_shop
from typer.testing import CliRunner

from model_export.cli import app
from model_export.contrast import Contrast, blend, prune, vectors
from model_export.data import Source
from model_export.export import Servable, load_base
from model_export.folder import publish
from model_export.gates import check_variants
from model_export.judge import judge
from model_export.manifest import amend
from model_export.options import TrainingError
from model_export.pairs import Pairs, make_pairs
from model_export.verify import verify
from stream.encoder import Encoder, read_manifest
from stream.recommend.catalogue import item_text
from stream.settings import Settings


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shop(tmp_path_factory.mktemp("shop"))


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
    train("--data", shop, "--output", folder, "--base", tiny_base, "--until", "2023-11-15T06:00:00Z", *options)
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
