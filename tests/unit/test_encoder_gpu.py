"""The encoder on a GPU. Tests of the class at the end need one; the others make the same calls of ONNX Runtime on a CPU session."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream.encoder import Encoder
from stream.encoder import session as onnx_session
from stream.encoder.batching import GPU_MULTIPLE, GPU_TOKEN_BUDGET
from stream.encoder.bound import BoundRuns, Inputs
from stream.encoder.session import CPU, CUDA, count_gpus, open_session
from stream.engine.intake import Batch
from stream.engine.reader import KafkaRecord
from stream.events import Item
from stream.pipeline import Pipeline
from stream.recommend.catalogue import Catalogue, item_text
from stream.recommend.memory import Memory
from stream.recommend.recommender import Recommender
from stream.replay.variant import MemoryStates
from stream.settings import Settings

GPUS = count_gpus()
VARIANTS = ("fp32", "int8", "fp16")
THINGS = [
    "garden hose 25 ft",
    "red running shoes",
    "space war video game",
    "coffee grinder with burr",
    "usb c charging cable",
    "noise cancelling headphones",
    "4k television 55 inch",
    "kids bicycle helmet",
    "stainless steel kettle",
    "office chair",
]
# Of 3 to 256 tokens and more, in many micro-batches, some of them of many texts.
TEXTS = [f"{thing} {'and another one ' * extra}{number}" for thing in THINGS for number in range(20) for extra in range(3)]
TEXTS += ["", "a", "ミルク", "who?", "hose " * 120, "hose " * 400]


def bound_on_the_cpu(
    folder: Path, variant: Any = "fp32", token_budget: int = GPU_TOKEN_BUDGET, multiple: int = GPU_MULTIPLE
) -> Encoder:
    """An encoder that does on a CPU session what it does on a GPU."""
    encoder = Encoder(folder, device="cpu", variant=variant, threads=1, cache_size=0)
    encoder._bound = BoundRuns(encoder._session, encoder._output, encoder.dimension, "cpu")
    encoder._token_budget, encoder._multiple = token_budget, multiple
    return encoder


@pytest.fixture(scope="module", params=VARIANTS)
def pair(request: pytest.FixtureRequest, tiny_model: Path) -> tuple[Encoder, Encoder]:
    """An encoder with plain runs, and one with bound ones in micro-batches of at most 24 tokens and without padding."""
    plain = Encoder(tiny_model, device="cpu", variant=request.param, threads=1, cache_size=0)
    return plain, bound_on_the_cpu(tiny_model, request.param, 24, 1)


@pytest.fixture
def batches() -> list[Inputs]:
    """Micro-batches as they come: of different lengths, numbers of texts and masks, the longest first."""
    rng = np.random.default_rng(1)
    shapes = ((1, 40), (3, 9), (7, 5), (1, 2), (30, 2))
    lengths = [rng.integers(1, length, count, endpoint=True) for count, length in shapes]
    return [
        (rng.integers(5, 30, shape), (np.arange(shape[1]) < of[:, None]).astype(np.int64))
        for shape, of in zip(shapes, lengths, strict=True)
    ]


@pytest.fixture
def session(tiny_model: Path) -> onnxruntime.InferenceSession:
    return open_session(tiny_model / "model.onnx", device="cpu")


def bound(session: Any) -> BoundRuns:
    return BoundRuns(session, "sentence_embedding", 32, "cpu")


def backwards(inputs: Inputs) -> Inputs:
    """Other texts of the same lengths."""
    return inputs[0][:, ::-1], inputs[1]


words = st.sampled_from(["garden", "hose", "red", "blue", "shoe", "running", "war", "the", "where", "is", "x", "who?", "ミルク"])


@given(batch=st.lists(st.lists(words, max_size=30).map(" ".join), min_size=1, max_size=40))
@settings(max_examples=60, deadline=None)
def test_bound_runs_give_the_vectors_of_plain_runs_bit_for_bit(pair: tuple[Encoder, Encoder], batch: list[str]) -> None:
    plain, with_binding = pair
    assert np.array_equal(with_binding.encode(batch), plain.encode(batch))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("token_budget", [64, GPU_TOKEN_BUDGET])
def test_so_they_do_in_the_default_model(model_folder: Path, variant: Any, token_budget: int) -> None:
    texts = TEXTS[::7] + TEXTS[-6:]
    plain = Encoder(model_folder, device="cpu", variant=variant, cache_size=0)
    assert np.array_equal(bound_on_the_cpu(model_folder, variant, token_budget, 1).encode(texts), plain.encode(texts))


@pytest.mark.parametrize(("variant", "at_least"), [("fp32", 0.999999), ("int8", 0.9999), ("fp16", 0.9999)])
def test_padding_changes_a_vector_by_no_more_than_rounding(model_folder: Path, variant: Any, at_least: float) -> None:
    plain = Encoder(model_folder, device="cpu", variant=variant, cache_size=0).encode(TEXTS[::7] + TEXTS[-6:])
    padded = bound_on_the_cpu(model_folder, variant).encode(TEXTS[::7] + TEXTS[-6:])
    assert (padded * plain).sum(axis=1).min() >= at_least


def test_so_texts_of_many_lengths_take_few_runs(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, shapes = bound_on_the_cpu(tiny_model), []
    runs = encoder._bound
    assert runs is not None
    monkeypatch.setattr(encoder, "_bound", lambda batches: shapes.extend(ids.shape for ids, _ in batches) or runs(batches))
    texts = [" ".join(["hose"] * words) for words in range(23)] + ["hose " * 400]
    encoder.encode(texts)
    assert shapes == [(1, encoder.manifest.max_length), (8, 24), (8, 16), (7, 8)]


def test_plain_runs_have_what_bound_runs_have(session: onnxruntime.InferenceSession, batches: list[Inputs]) -> None:
    names = "input_ids", "attention_mask"
    plain = [session.run(None, dict(zip(names, inputs, strict=True)))[0] for inputs in batches]
    assert all(map(np.array_equal, bound(session)(batches), plain))
    assert not np.array_equal(
        plain[1], session.run(None, dict(zip(names, (batches[1][0], batches[1][1] * 0 + 1), strict=True)))[0]
    )


def test_the_vectors_of_a_call_outlive_the_next_one(session: onnxruntime.InferenceSession, batches: list[Inputs]) -> None:
    runs = bound(session)
    for some in (batches, batches[:1], batches[-1:]):
        first = runs(some)
        kept = [part.copy() for part in first]
        for other in batches[::-1]:
            runs([backwards(other)])
        assert all(map(np.array_equal, first, kept))


def test_several_threads_may_call_at_once(session: onnxruntime.InferenceSession, batches: list[Inputs]) -> None:
    runs = bound(session)
    more = [(array.repeat(256 // array.size, axis=0) for array in backwards(inputs)) for inputs in batches]
    calls = [[(ids, mask)] * 3 for ids, mask in [*more, (batches[0][0] + 1, batches[0][1])]] * 20
    expected = [bound(session)(call) for call in calls]
    with ThreadPoolExecutor(4) as pool:
        for found, right in zip(pool.map(runs, calls), expected, strict=True):
            assert all(map(np.array_equal, found, right))


def test_after_a_run_that_failed_the_next_call_is_right(session: onnxruntime.InferenceSession, batches: list[Inputs]) -> None:
    runs = bound(session)
    expected = runs(batches)
    with pytest.raises(Exception, match="indices element out of data bounds"):
        runs([batches[0], (np.full((2, 6), 1_000_000), np.ones((2, 6), np.int64)), batches[1]])
    assert all(map(np.array_equal, runs(batches), expected))


@pytest.mark.skipif(sys.platform != "linux", reason="CUDA's libraries have other names")
def test_cudas_libraries_are_installed_for_the_cuda_that_onnx_runtime_was_built_with() -> None:
    """All but the driver's, libcuda.so.1: with a driver and `make`, the tests below can run."""
    program = "import onnxruntime; onnxruntime.preload_dlls()"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == ""  # it prints what it cannot load


def answers(encoder: Encoder, queries: Sequence[str]) -> list[list[str]]:
    """Each query's items in a shop that sells the things, best first."""
    chosen = Settings()
    items = [Item(item_id=thing, title=thing) for thing in THINGS]
    catalogue = Catalogue(encoder.dimension)
    for item, vector in zip(items, encoder.encode([item_text(item) for item in items]), strict=True):
        catalogue.put(item, vector)
    pipeline = Pipeline(chosen, encoder, Recommender(catalogue, Memory(chosen.recommend), chosen.recommend))
    entries = []
    for number, query in enumerate(queries):
        body = {"event_id": f"e{number}", "user_id": f"u{number}", "timestamp": 1_767_225_600_000 + number, "query": query}
        record = KafkaRecord("searches", 0, number, 0, f"u{number}".encode(), msgspec.json.encode(body))
        entries.append(Pipeline.decode_search(record))
    outputs = pipeline.process(Batch(entries), MemoryStates()).outputs
    found = [msgspec.json.decode(output.value or b"") for output in outputs if output.topic == "recommendations"]
    return [[item["item_id"] for item in answer["items"]] for answer in found]


QUERIES = ["hose for my garden", "shoes to run", "computer games", "grind coffee beans", "phone charger", "tv"]
CLOSEST = [0, 1, 2, 3, 4, 6]


def test_a_pipeline_answers_the_same_through_bound_runs(model_folder: Path) -> None:
    plain = answers(Encoder(model_folder, device="cpu", variant="fp32"), QUERIES)
    assert answers(bound_on_the_cpu(model_folder), QUERIES) == plain
    assert [items[0] for items in plain] == [THINGS[thing] for thing in CLOSEST]


@pytest.fixture(scope="module")
def gpu() -> Iterator[None]:
    """Bring back what conftest hides. The driver read the environment when `GPUS` were counted, before it hid them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx_session, "count_gpus", lambda: GPUS)
        yield


@pytest.fixture(scope="module")
def encoder(model_folder: Path, gpu: None) -> Encoder:
    return Encoder(model_folder, device="cuda", cache_size=0)


@pytest.fixture(scope="module")
def exact(model_folder: Path) -> np.ndarray:
    return Encoder(model_folder, device="cpu", variant="fp32", cache_size=0).encode(TEXTS)


@pytest.mark.skipif(GPUS == 0, reason="no GPU here")
@pytest.mark.usefixtures("gpu")
class TestOnAGpu:
    def test_auto_is_fp16_on_cuda_with_bound_runs(self, model_folder: Path) -> None:
        encoder = Encoder(model_folder, device="auto")
        assert encoder.provider == CUDA
        assert encoder.version == f"{encoder.manifest.version}-fp16"
        assert encoder._bound is not None
        encoder.warm_up()

    def test_vectors_are_those_of_fp32_to_fp16s_accuracy(self, encoder: Encoder, exact: np.ndarray) -> None:
        vectors = encoder.encode(TEXTS)
        assert vectors.dtype == np.float32
        assert np.abs(np.linalg.norm(vectors, axis=1) - 1).max() < 1e-5
        assert (vectors * exact).sum(axis=1).min() >= 0.999

    def test_the_fp32_file_agrees_with_the_cpu(self, model_folder: Path, exact: np.ndarray) -> None:
        vectors = Encoder(model_folder, device="cuda", variant="fp32", cache_size=0).encode(TEXTS)
        assert np.abs(vectors - exact).max() < 1e-4

    def test_neighbours_and_order_change_a_vector_by_no_more_than_fp16s_rounding(self, encoder: Encoder) -> None:
        together = encoder.encode(TEXTS)
        order = np.random.default_rng(2).permutation(len(TEXTS))
        assert ((encoder.encode([TEXTS[place] for place in order]) * together[order]).sum(axis=1)).min() >= 0.9999
        alone = np.concatenate([encoder.encode([text]) for text in TEXTS[::9]])
        assert (alone * together[::9]).sum(axis=1).min() >= 0.9999

    def test_no_texts_give_no_vectors(self, encoder: Encoder) -> None:
        assert encoder.encode([]).shape == (0, encoder.dimension)

    def test_a_text_that_comes_again_has_its_vector_again(self, encoder: Encoder) -> None:
        vectors = encoder.encode(["red", "blue shoes", "red", "red"])
        assert np.array_equal(vectors[[2, 3]], vectors[[0, 0]])
        assert not np.array_equal(vectors[0], vectors[1])

    def test_texts_for_several_full_micro_batches_of_one_length(self, encoder: Encoder) -> None:
        numbers = [f"hose {number:04}" for number in range(9000)]
        lengths = [len(encoding.ids) for encoding in encoder._tokenizer.encode_batch_fast(numbers)]
        assert max(lengths.count(length) * length for length in set(lengths)) > GPU_TOKEN_BUDGET
        vectors = encoder.encode(numbers)
        assert (vectors[::500] * encoder.encode(numbers[::500])).sum(axis=1).min() >= 0.9999

    def test_two_threads_at_once(self, encoder: Encoder, exact: np.ndarray) -> None:
        halves = slice(None, None, 2), slice(1, None, 2)
        with ThreadPoolExecutor(2) as pool:
            calls = [(half, pool.submit(encoder.encode, TEXTS[half])) for half in halves for _ in range(20)]
            assert all((call.result(120) * exact[half]).sum(axis=1).min() >= 0.999 for half, call in calls)

    def test_a_pipeline_finds_what_it_finds_on_the_cpu(self, encoder: Encoder, model_folder: Path) -> None:
        on_cpu = answers(Encoder(model_folder, device="cpu"), QUERIES)
        assert [items[0] for items in answers(encoder, QUERIES)] == [items[0] for items in on_cpu]


def test_a_cpu_session_has_plain_runs(tiny_model: Path) -> None:
    encoder = Encoder(tiny_model, device="cpu")
    assert (encoder.provider, encoder._bound) == (CPU, None)
