"""The command `model-export`."""

from __future__ import annotations

import importlib
import logging
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from model_export.data import DataError, Source, Span
from model_export.manifest import OutputError
from model_export.options import Method, Options, Precision, Schedule, Task, Tracker, TrainingError
from model_export.verify import VerificationError, verify
from stream.encoder.manifest import Manifest, ModelFolderError
from stream.settings import SettingsError

app = typer.Typer(no_args_is_help=True, add_completion=False)
console = Console()
errors = Console(stderr=True)


@app.callback()
def main() -> None:
    """Make and check the model folder that driftstream serves."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")


@app.command("export")
def export_command(
    output: Annotated[Path, typer.Option(help="The model folder to write, or to replace once the new one is whole.")],
    base: Annotated[
        str | None,
        typer.Option(help="A BERT sentence encoder: folder or Hugging Face name. Default: the packaged all-MiniLM-L6-v2."),
    ] = None,
) -> None:
    """Turn a PyTorch sentence encoder into a model folder: ONNX in fp32, int8 and fp16, tokenizer, manifest, model card."""
    try:
        from model_export.export import ExportError  # PyTorch takes seconds to import, and `verify` runs without it
        from model_export.folder import export
    except ImportError as error:
        _fail(f"{error.name} is not installed: pip install 'driftstream[export]'")
    try:
        with console.status("exporting") as status:
            manifest = export(base, output, progress=status.update)
    except (ExportError, OutputError, VerificationError) as error:
        _fail(str(error))
    _show(output, manifest)


DEFAULTS = Options(runs=Path())


@app.command("train")
def train_command(
    output: Annotated[Path, typer.Option(help="The model folder to write; `rank` and `drift` add to one that is there.")],
    task: Annotated[Task, typer.Option(help="What to learn.")] = "retrieve",
    data: Annotated[Path | None, typer.Option(help="Folder with items, clicks and perhaps searches as JSON lines.")] = None,
    from_topics: Annotated[
        bool, typer.Option("--from-topics", help="Read the Kafka topics of driftstream.toml instead.")
    ] = False,
    since: Annotated[str | None, typer.Option(help="Event time from which to learn: a date, RFC 3339 or epoch ms.")] = None,
    until: Annotated[str | None, typer.Option(help="Event time before which to learn.")] = None,
    base: Annotated[str | None, typer.Option(help="Encoder to start from: folder or Hugging Face name.")] = None,
    method: Annotated[Method, typer.Option(help="Train all weights, or low-rank updates of them.")] = DEFAULTS.method,
    rank: Annotated[int, typer.Option(help="Rank of LoRA's matrices; AdaLoRA starts half as high again.")] = DEFAULTS.rank,
    layers: Annotated[int | None, typer.Option(help="Keep that many layers and distil the whole model into them.")] = None,
    epochs: Annotated[int | None, typer.Option(help="At most; the task's own number if not given.")] = None,
    patience: Annotated[int, typer.Option(help="Validations without a better one after which to stop.")] = DEFAULTS.patience,
    batch_size: Annotated[int | None, typer.Option(help="Examples in a batch.")] = None,
    accumulate: Annotated[int, typer.Option(help="Batches to an optimiser step.")] = DEFAULTS.accumulate,
    learning_rate: Annotated[float | None, typer.Option(help="The highest of the schedule.")] = None,
    schedule: Annotated[Schedule, typer.Option(help="How the learning rate falls after warming up.")] = DEFAULTS.schedule,
    warm_up: Annotated[float, typer.Option(help="Share of the steps in which the rate rises.")] = DEFAULTS.warm_up,
    weight_decay: Annotated[float, typer.Option(help="AdamW's.")] = DEFAULTS.weight_decay,
    dropout: Annotated[float, typer.Option(help="In the encoder and before the classifier.")] = DEFAULTS.dropout,
    typing_noise: Annotated[float | None, typer.Option(help="Share of the queries misspelt anew in each epoch.")] = None,
    adversarial: Annotated[
        float, typer.Option(help="FGM: size of the step against the gradient; 0: off.")
    ] = DEFAULTS.adversarial,
    precision: Annotated[Precision, typer.Option(help="auto: bf16 on a GPU that has it, else fp32.")] = DEFAULTS.precision,
    seed: Annotated[int, typer.Option(help="Equal seeds give equal weights on a CPU.")] = DEFAULTS.seed,
    tracker: Annotated[Tracker, typer.Option(help="Where the curves go.")] = DEFAULTS.tracker,
    runs: Annotated[Path | None, typer.Option(help="Checkpoints and logs; OUTPUT-runs if not given.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in the runs folder.")] = False,
) -> None:
    """Train a model on what people searched and clicked, and write it as a model folder that the worker serves."""
    try:
        if (data is None) != from_topics:
            _fail("give either --data DIR or --from-topics")
        source = Source(data, Span.parse(since, until))
        options = Options(
            base=base,
            method=method,
            rank=rank,
            layers=layers,
            epochs=epochs,
            patience=patience,
            batch_size=batch_size,
            accumulate=accumulate,
            learning_rate=learning_rate,
            schedule=schedule,
            warm_up=warm_up,
            weight_decay=weight_decay,
            dropout=dropout,
            typing_noise=typing_noise,
            adversarial=adversarial,
            precision=precision,
            seed=seed,
            tracker=tracker,
            progress=console.is_terminal,
            runs=runs or output.with_name(f"{output.name}-runs"),
            resume=resume,
        )
        # `retrieve` is in model_export/retrieve.py, and so on. PyTorch takes seconds to import: only what is asked for is.
        module = importlib.import_module(f"model_export.{task}")
    except ValidationError as error:
        _fail("; ".join(f"--{str(f['loc'][0]).replace('_', '-')}: {f['msg']}" for f in error.errors()))
    except DataError as error:
        _fail(str(error))
    except ImportError as error:
        _fail(f"{error.name} is not installed: pip install 'driftstream[train]'")
    try:
        module.train(source, output, options, console)
        console.print(f"written: {output}")
    except (DataError, SettingsError, TrainingError, OutputError, ModelFolderError, VerificationError) as error:
        _fail(str(error))


@app.command("verify")
def verify_command(folder: Annotated[Path, typer.Argument(help="A model folder.")]) -> None:
    """Check a model folder's hashes, parity with PyTorch and accuracy. Exits with 1 and the reason if one is off."""
    try:
        with console.status("verifying"):
            manifest = verify(folder)
    except (ModelFolderError, VerificationError) as error:
        _fail(str(error))
    _show(folder, manifest)


def _show(folder: Path, manifest: Manifest) -> None:
    table = Table(title=f"{manifest.version} in {folder}", title_justify="left")
    for heading in ("variant", "file", "MB", "mean cosine to fp32", "least"):
        table.add_column(heading, justify="left" if heading in ("variant", "file") else "right")
    for variant, file in manifest.variants.items():
        accuracy = manifest.accuracy[variant]
        size = f"{(folder / file).stat().st_size / 1e6:.1f}"
        table.add_row(variant, file, size, f"{accuracy.cosine_mean:.5f}", f"{accuracy.cosine_min:.5f}")
    console.print(table)


def _fail(reason: str) -> NoReturn:
    errors.print(f"[bold red]error[/]: {escape(reason)}", highlight=False, soft_wrap=True)
    raise typer.Exit(1)


if __name__ == "__main__":
    app()
