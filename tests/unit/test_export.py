import json
import shutil
import warnings
from pathlib import Path

import msgspec
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic
from tiny_model import write_base
from transformers import AutoTokenizer, BertModel
from typer.testing import CliRunner

from model_export import export as torch_export
from model_export.cli import app
from model_export.folder import export
from model_export.manifest import OutputError, hash_files, replacing, version_of
from model_export.sentences import CALIBRATION, HELD_OUT
from stream.encoder import Encoder, read_manifest

LAYERS = 2
FILES = {"model.onnx", "model.int8.onnx", "model.fp16.onnx", "tokenizer.json", "config.json", "README.md"}


@pytest.fixture
def copy(tiny_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def rehash(folder: Path) -> None:
    """Make the manifest agree with changed files, as someone would who edits a model and its manifest."""
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"] = hash_files(folder)
    manifest["version"] = version_of("tiny-bert", manifest["files"])
    (folder / "manifest.json").write_text(json.dumps(manifest))


def scale_rows(path: Path, name: str, factor: float) -> None:
    """Multiply the rows of a matrix by 1 to `factor`."""
    model = onnx.load(path)
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name.endswith(name))
    values = numpy_helper.to_array(tensor)
    rows = np.linspace(1, factor, len(values), dtype=values.dtype)[:, None]
    tensor.CopyFrom(numpy_helper.from_array(values * rows, tensor.name))
    onnx.save(model, path)


class TestTheFolder:
    def test_holds_all_files_with_their_hashes(self, tiny_model: Path) -> None:
        manifest = read_manifest(tiny_model)
        assert {path.name for path in tiny_model.iterdir()} == FILES | {"manifest.json"}
        assert manifest.files == hash_files(tiny_model)
        assert manifest.version == version_of("tiny-bert", manifest.files)

    def test_says_how_to_use_the_model(self, tiny_model: Path) -> None:
        manifest = read_manifest(tiny_model)
        session = onnxruntime.InferenceSession(tiny_model / "model.onnx", providers=["CPUExecutionProvider"])
        assert [tensor.name for tensor in manifest.inputs] == [tensor.name for tensor in session.get_inputs()]
        assert [tensor.name for tensor in manifest.outputs] == [tensor.name for tensor in session.get_outputs()]
        assert manifest.outputs[0].shape == session.get_outputs()[0].shape == ["batch", 32]
        assert (manifest.dimension, manifest.max_length, manifest.pooling) == (32, 48, "mean")
        assert "32 numbers" in (tiny_model / "README.md").read_text()

    def test_counts_the_fused_operators(self, tiny_model: Path) -> None:
        fused = {"Attention": LAYERS, "BiasGelu": LAYERS, "SkipLayerNormalization": 2 * LAYERS}
        assert read_manifest(tiny_model).fused_operators == {
            "model.onnx": fused,
            "model.fp16.onnx": fused,
            "model.int8.onnx": {"BiasGelu": LAYERS, "MatMulIntegerToFloat": 6 * LAYERS, "MultiHeadAttention": LAYERS},
        }

    def test_has_every_product_by_weights_in_int8_too_small_to_saturate(self, tiny_model: Path) -> None:
        graph = onnx.load(tiny_model / "model.int8.onnx").graph
        constants = {tensor.name: tensor for tensor in graph.initializer}
        assert not [node for node in graph.node if node.op_type in ("MatMul", "Gemm") and node.input[1] in constants]
        for node in graph.node:
            if node.op_type == "MatMulIntegerToFloat":
                weights = numpy_helper.to_array(constants[node.input[1]])
                assert weights.dtype == np.int8
                assert np.abs(weights.astype(int)).max() == 63

    def test_has_fp16_weights_behind_float_outputs(self, tiny_model: Path) -> None:
        graph = onnx.load(tiny_model / "model.fp16.onnx").graph
        large = [tensor for tensor in graph.initializer if np.prod(tensor.dims) >= 32 and tensor.data_type != TensorProto.INT64]
        assert large
        assert all(tensor.data_type == TensorProto.FLOAT16 for tensor in large)
        assert graph.output[0].type.tensor_type.elem_type == TensorProto.FLOAT

    def test_is_the_same_when_made_again(self, tiny_model: Path, tmp_path: Path) -> None:
        again = export(str(tiny_model.parent / "tiny-bert"), tmp_path / "model")
        assert again == read_manifest(tiny_model)


def test_a_padded_batch_gives_the_vectors_of_pytorch(tiny_model: Path) -> None:
    base = tiny_model.parent / "tiny-bert"
    tokens = AutoTokenizer.from_pretrained(base)(list(HELD_OUT), padding=True, truncation=True, return_tensors="pt")
    with torch.inference_mode():
        hidden = BertModel.from_pretrained(base).eval()(**tokens).last_hidden_state
        mask = tokens["attention_mask"].unsqueeze(-1)
        expected = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1).numpy()
    session = onnxruntime.InferenceSession(tiny_model / "model.onnx", providers=["CPUExecutionProvider"])
    feed = {name: tokens[name].numpy() for name in ("input_ids", "attention_mask")}
    assert np.abs(session.run(None, feed)[0] - expected).max() < 1e-5


def test_pooling_and_longest_text_are_what_the_base_folder_says(tmp_path: Path) -> None:
    base = write_base(tmp_path / "Cls Model", seed=1, layers=1)
    (base / "1_Pooling").mkdir()
    (base / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true, "pooling_mode_mean_tokens": false}')
    (base / "sentence_bert_config.json").write_text('{"max_seq_length": 16}')
    manifest = export(str(base), tmp_path / "out")
    assert (manifest.pooling, manifest.max_length) == ("cls", 16)
    assert manifest.version.startswith("cls-model-")
    ids = AutoTokenizer.from_pretrained(base)("red shoes", return_tensors="pt")
    with torch.inference_mode():
        first = BertModel.from_pretrained(base).eval()(**ids).last_hidden_state[0, 0].numpy()
    vector = Encoder(tmp_path / "out", device="cpu", variant="fp32").encode(["red shoes"])[0]
    assert np.abs(vector - first / np.linalg.norm(first)).max() < 1e-5


def test_a_graph_that_does_not_fuse_is_refused_and_the_old_folder_stays(copy: Path, tmp_path: Path) -> None:
    base = write_base(tmp_path / "relu-bert", layers=1, activation="relu")
    before = hash_files(copy)
    result = CliRunner().invoke(app, ["export", "--base", str(base), "--output", str(copy)])
    assert result.exit_code == 1
    assert "not fused" in result.output
    assert hash_files(copy) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "relu-bert"]


class TestReplacing:
    def test_puts_the_new_folder_in_the_old_ones_place(self, copy: Path) -> None:
        with replacing(copy) as folder:
            (folder / "manifest.json").write_text("new")
            assert read_manifest(copy)
        assert [path.name for path in copy.iterdir()] == ["manifest.json"]
        assert [path.name for path in copy.parent.iterdir()] == ["model"]

    def test_changes_nothing_when_the_work_fails(self, copy: Path) -> None:
        before = hash_files(copy)
        with pytest.raises(RuntimeError), replacing(copy) as folder:
            (folder / "model.onnx").write_text("half")
            raise RuntimeError
        assert hash_files(copy) == before
        assert [path.name for path in copy.parent.iterdir()] == ["model"]

    def test_refuses_a_folder_of_something_else(self, tmp_path: Path) -> None:
        (tmp_path / "thesis.txt").write_text("years of work")
        with pytest.raises(OutputError, match="not a model folder"), replacing(tmp_path):
            pass
        assert (tmp_path / "thesis.txt").read_text() == "years of work"


class TestTheBase:
    def test_is_checked_when_it_is_the_packaged_one(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch_export, "PACKAGED_SHA256", "0" * 64)
        with pytest.raises(torch_export.ExportError, match=r"is not all-MiniLM-L6-v2.*--base"):
            torch_export.load_base(None)

    def test_that_neither_disk_nor_hub_has_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        with pytest.raises(torch_export.ExportError, match="'no-such/model' is no folder here"):
            torch_export.load_base("no-such/model")

    def test_that_is_no_model_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(torch_export.ExportError, match=r"no config\.json"):
            torch_export.load_base(str(tmp_path))


class TestVerify:
    def verify(self, folder: Path) -> tuple[int, str]:
        result = CliRunner().invoke(app, ["verify", str(folder)])
        return result.exit_code, " ".join(result.output.split())

    def test_passes_what_export_made(self, tiny_model: Path) -> None:
        code, output = self.verify(tiny_model)
        assert code == 0
        assert read_manifest(tiny_model).version in output

    def test_finds_no_model(self, tmp_path: Path) -> None:
        code, output = self.verify(tmp_path)
        assert code == 1
        assert "model-export export" in output

    def test_finds_a_changed_file(self, copy: Path) -> None:
        (copy / "config.json").write_text("{}")
        code, output = self.verify(copy)
        assert code == 1
        assert "config.json" in output
        assert "sha256" in output

    def test_finds_a_stray_file(self, copy: Path) -> None:
        (copy / "model.old.onnx").write_bytes(b"")
        code, output = self.verify(copy)
        assert code == 1
        assert "model.old.onnx" in output

    def test_finds_a_version_of_other_files(self, copy: Path) -> None:
        manifest = msgspec.json.decode((copy / "manifest.json").read_bytes())
        (copy / "manifest.json").write_bytes(msgspec.json.encode(manifest | {"version": "tiny-bert-00000000"}))
        code, output = self.verify(copy)
        assert code == 1
        assert "tiny-bert-00000000" in output

    def test_finds_weights_that_are_not_pytorchs(self, copy: Path) -> None:
        scale_rows(copy / "model.onnx", "word_embeddings.weight", 1.01)
        rehash(copy)
        code, output = self.verify(copy)
        assert code == 1
        assert "parity" in output

    def test_finds_an_int8_file_that_lost_its_accuracy(self, copy: Path) -> None:
        scale_rows(copy / "model.int8.onnx", "word_embeddings.weight", -1.0)
        rehash(copy)
        code, output = self.verify(copy)
        assert code == 1
        assert "accuracy" in output
        assert "int8" in output

    def test_finds_a_model_in_which_a_vector_depends_on_its_neighbours(self, copy: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            quantize_dynamic(copy / "model.onnx", copy / "model.int8.onnx", weight_type=QuantType.QInt8)
        rehash(copy)
        code, output = self.verify(copy)
        assert code == 1
        assert "independence: int8" in output


def test_no_sentence_both_calibrates_and_judges() -> None:
    assert not set(CALIBRATION) & set(HELD_OUT)
