"""The command `model-export`."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from model_export.manifest import OutputError
from model_export.verify import VerificationError, verify
from stream.encoder.manifest import Manifest, ModelFolderError

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


def _fail(reason: str) -> None:
    errors.print(f"[bold red]error[/]: {reason}", highlight=False, soft_wrap=True)
    raise typer.Exit(1)


if __name__ == "__main__":
    app()
