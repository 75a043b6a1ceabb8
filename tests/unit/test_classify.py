"""Classify: intents, or whether a search is followed by a click; on a seeded BERT of two layers."""

import json
from pathlib import Path
from random import Random

import pytest
from training import MINUTE, NOON, train

from model_export.verify import verify
from stream.encoder import Encoder, ModelFolderError


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
        said = train("--task", "classify", "--data", tmp_path, "--output", folder, "--base", tiny_base, *options)
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
        train("--task", "classify", "--data", tmp_path, "--output", folder, "--base", tiny_base, *options)
        manifest = verify(folder)
        assert manifest.labels == ["click", "no click"]
        assert manifest.training is not None
        assert manifest.training.held_out["int8"] > 0.95
        assert manifest.training.since == NOON
