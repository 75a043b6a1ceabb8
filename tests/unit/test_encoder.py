import contextlib
import logging
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream.encoder import DeviceError, Encoder, ModelFolderError, read_manifest
from stream.encoder import session as onnx_session

VARIANTS = ("fp32", "int8")

words = st.sampled_from(
    ["garden", "hose", "red", "shoes", "running", "game", "war", "4k", "tv,", "who?", "x", "ümlaut", "ミルク", "zebra-crossing"]
)
texts = st.one_of(st.lists(words, max_size=60).map(" ".join), st.text(max_size=40))


@pytest.fixture(scope="module", params=VARIANTS)
def encoder(request: pytest.FixtureRequest, tiny_model: Path) -> Encoder:
    return Encoder(tiny_model, device="cpu", variant=request.param, threads=2, cache_size=0)


@given(st.lists(texts, min_size=1, max_size=40))
@settings(max_examples=60, deadline=None)
def test_a_vector_does_not_depend_on_its_neighbours_bit_for_bit(encoder: Encoder, batch: list[str]) -> None:
    together = encoder.encode(batch)
    alone = np.concatenate([encoder.encode([text]) for text in batch])
    assert np.array_equal(together, alone)


@pytest.mark.parametrize("variant", VARIANTS)
def test_nor_does_it_in_the_default_model_at_any_batch_size_or_thread_count(model_folder: Path, variant: str) -> None:
    sentences = [f"{word} {n} {'and more ' * (n % 7)}".strip() for n in range(60) for word in ("hose", "red shoes")]
    one, two = (Encoder(model_folder, device="cpu", variant=variant, threads=n, cache_size=0) for n in (1, 2))  # type: ignore[arg-type]
    expected = one.encode(sentences)
    assert np.array_equal(two.encode(sentences), expected)
    rng = np.random.default_rng(0)
    for size in [1, 1, 1, 2, 3, 4, 5, 7, 11, 17, 31, 64, 100]:
        chosen = rng.permutation(len(sentences))[:size]
        assert np.array_equal(two.encode([sentences[position] for position in chosen]), expected[chosen]), size


def test_vectors_are_unit_rows_of_float32(encoder: Encoder) -> None:
    vectors = encoder.encode(["garden hose", "", "a", "red shoes " * 100])
    assert vectors.dtype == np.float32
    assert vectors.shape == (4, encoder.dimension)
    assert np.abs(np.linalg.norm(vectors, axis=1) - 1).max() < 1e-5


def test_no_texts_give_no_vectors(encoder: Encoder) -> None:
    assert encoder.encode([]).shape == (0, encoder.dimension)


def test_a_text_is_cut_at_the_models_longest(encoder: Encoder) -> None:
    longest = encoder.manifest.max_length
    vectors = encoder.encode(["game " * longest, "game " * longest + "war"])
    assert np.array_equal(vectors[0], vectors[1])


def test_a_cached_vector_is_the_computed_one(tiny_model: Path) -> None:
    cached, plain = (Encoder(tiny_model, device="cpu", cache_size=size) for size in (3, 0))
    for batch in (["red", "blue", "red"], ["blue", "red"], ["a", "b", "c", "d", "red"], ["d", "red", "a"]):
        assert np.array_equal(cached.encode(batch), plain.encode(batch))


@pytest.mark.parametrize("cache_size", [100, 2, 0])
def test_texts_of_the_same_tokens_are_computed_once(tiny_model: Path, monkeypatch: pytest.MonkeyPatch, cache_size: int) -> None:
    encoder = Encoder(tiny_model, device="cpu", cache_size=cache_size)
    red, blue, game = encoder._tokenize(["red", "blue", "game"])
    computed: list[bytes] = []
    run = encoder._run
    monkeypatch.setattr(encoder, "_run", lambda sequences: computed.extend(sequences) or run(sequences))
    vectors = encoder.encode(["red", "blue", "red", "RED "])
    assert np.array_equal(vectors[[0, 0]], vectors[2:])
    assert not np.array_equal(vectors[0], vectors[1])
    encoder.encode([" Blue", "game"])
    assert computed == [red, blue, *([] if cache_size else [blue]), game]
    assert (" Blue" in encoder) == (cache_size > 0)


def test_what_is_known_does_not_wait_for_what_another_thread_computes(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = Encoder(tiny_model, device="cpu")
    expected = encoder.encode(["red"])
    computed: list[bytes] = []
    run, begun, go_on = encoder._run, threading.Event(), threading.Event()

    def slowly(sequences: list[bytes]) -> np.ndarray:
        begun.set()
        assert go_on.wait(30)
        computed.extend(sequences)
        return run(sequences)

    monkeypatch.setattr(encoder, "_run", slowly)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(encoder.encode, ["blue"])
        assert begun.wait(30)
        assert np.array_equal(encoder.encode(["red"]), expected)
        second = pool.submit(encoder.encode, ["red", "blue"])  # and what is under way is not computed again
        go_on.set()
        assert np.array_equal(second.result(30)[1:], first.result(30))
    assert computed == encoder._tokenize(["blue"])


def test_int8_is_what_auto_means_on_a_cpu_and_the_version_says_so(tiny_model: Path) -> None:
    encoder = Encoder(tiny_model, device="cpu")
    assert encoder.version == f"{read_manifest(tiny_model).version}-int8"
    assert encoder.provider == "CPUExecutionProvider"
    encoder.warm_up()


def test_fp32_agrees_with_pytorch(tiny_model: Path) -> None:
    parity = read_manifest(tiny_model).parity
    vectors = Encoder(tiny_model, device="cpu", variant="fp32").encode([example.text for example in parity])
    assert np.abs(vectors - np.array([example.vector for example in parity])).max() < 1e-5


class Watched:
    """The session, noting how many calls are under way; each waits until so many are, or for a second."""

    def __init__(self, encoder: Encoder, expected: int) -> None:
        self._session = encoder._session
        self._met = threading.Barrier(expected)
        self.at_once = 0

    def run(self, *arguments: Any) -> Any:
        with contextlib.suppress(threading.BrokenBarrierError):
            self._met.wait(1)
            self.at_once = self._met.parties
        return self._session.run(*arguments)


@pytest.mark.parametrize(("threads", "at_once"), [(1, 0), (3, 3)])
def test_so_many_micro_batches_are_computed_at_once(tiny_model: Path, threads: int, at_once: int) -> None:
    encoder = Encoder(tiny_model, device="cpu", threads=threads)
    assert encoder._session.get_session_options().intra_op_num_threads == 1  # it computes in the thread that calls
    watched = Watched(encoder, max(2, threads))
    encoder._session = watched  # type: ignore[assignment]
    encoder.encode(["red", "red hose", "red hose red"])
    assert watched.at_once == at_once


@pytest.mark.parametrize("texts", [[], ["red"]])
def test_what_needs_no_computation_waits_for_none(tiny_model: Path, texts: list[str]) -> None:
    encoder = Encoder(tiny_model, device="cpu")
    encoder.encode(["red"])
    with ThreadPoolExecutor(1) as pool, encoder._computing:
        assert len(pool.submit(encoder.encode, texts).result(10)) == len(texts)


def test_cuda_without_a_gpu_is_an_error_that_says_what_to_do(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_session, "count_gpus", lambda: 0)
    with pytest.raises(DeviceError, match=r"no GPU here.*device=cpu"):
        Encoder(tiny_model, device="cuda")


@pytest.mark.skipif(onnx_session.count_gpus() > 0, reason="this machine has a GPU, so CUDA may work")
class TestAGpuWhoseLibrariesAreMissing:
    def test_is_an_error_when_asked_for(self, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(onnx_session, "count_gpus", lambda: 1)
        with pytest.raises(DeviceError, match=r"cannot load its CUDA provider.*device=cpu"):
            Encoder(tiny_model, device="cuda")

    def test_is_a_warning_when_the_choice_was_free(
        self, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(onnx_session, "count_gpus", lambda: 1)
        with caplog.at_level(logging.WARNING):
            encoder = Encoder(tiny_model, device="auto")
        assert encoder.provider == "CPUExecutionProvider"
        assert encoder.version.endswith("-int8")
        assert "runs on the CPU" in caplog.text


def test_a_folder_without_a_model_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ModelFolderError, match="model-export export --output"):
        Encoder(tmp_path, device="cpu")


@pytest.fixture
def copy(tiny_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def test_a_changed_file_is_not_served(copy: Path) -> None:
    with (copy / "model.int8.onnx").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(ModelFolderError, match=r"model\.int8\.onnx.*sha256 differs"):
        Encoder(copy, device="cpu")
    assert Encoder(copy, device="cpu", variant="fp32").version.endswith("-fp32")


def test_a_missing_file_is_named(copy: Path) -> None:
    (copy / "tokenizer.json").unlink()
    with pytest.raises(ModelFolderError, match=r"tokenizer\.json is missing"):
        Encoder(copy, device="cpu")


def test_a_manifest_of_another_kind_is_refused_with_the_field(copy: Path) -> None:
    manifest = msgspec.json.decode((copy / "manifest.json").read_bytes())
    (copy / "manifest.json").write_bytes(msgspec.json.encode(manifest | {"format": 2}))
    with pytest.raises(ModelFolderError, match="format"):
        Encoder(copy, device="cpu")


def test_a_variant_that_is_not_there_is_named(copy: Path) -> None:
    manifest = msgspec.json.decode((copy / "manifest.json").read_bytes())
    del manifest["variants"]["int8"]
    (copy / "manifest.json").write_bytes(msgspec.json.encode(manifest))
    with pytest.raises(ModelFolderError, match="no int8 variant, only fp16, fp32"):
        Encoder(copy, device="cpu", variant="int8")


def test_it_needs_no_torch_and_says_nothing_unasked(tiny_model: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from stream.encoder import Encoder\n"
        f"Encoder(Path({str(tiny_model)!r})).encode(['garden hose'])\n"
        "assert not {'torch', 'transformers', 'model_export'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
