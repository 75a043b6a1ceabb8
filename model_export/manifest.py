"""Writing a model folder: all of it, or nothing."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import msgspec

from stream.encoder.manifest import MANIFEST, Manifest, check_files, read_manifest, sha256
from stream.learned_drift import DRIFT_FILE

CARD = "README.md"

LIBRARIES = ("torch", "transformers", "onnx", "onnxscript", "onnxruntime-gpu", "tokenizers", "accelerate", "peft")


class OutputError(Exception):
    """The output folder cannot be written; the message says what to do."""


@contextmanager
def replacing(output: Path) -> Iterator[Path]:
    """Give an empty folder to fill, and put it in the place of `output` when the block ends without an error.

    A model folder that is there already stays whole until then, and is replaced by two renames. Raises `OutputError` if
    `output` is something else than a model folder: it would be lost.
    """
    if output.exists() and not (output.is_dir() and ((output / MANIFEST).is_file() or not any(output.iterdir()))):
        raise OutputError(f"{output} exists and is not a model folder: choose another --output, or remove it")
    output.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{output.name}-", dir=output.parent))
    try:
        new, old = scratch / "new", scratch / "old"
        new.mkdir()
        yield new
        if output.exists():
            output.rename(old)
        try:
            new.rename(output)
        except OSError:
            if old.exists():
                old.rename(output)
            raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def amend(
    output: Path,
    change: Callable[[Manifest], Manifest],
    card: str,
    *,
    add: Callable[[Path], None] = lambda folder: None,
    check: Callable[[Path, Manifest], None] = lambda folder, manifest: None,
) -> Manifest:
    """Replace a model folder by one with a changed manifest and more on its card; return the manifest.

    The vectors stay what they are, and so does the version. Readers see the old folder or the new one, never a mixture.

    Args:
        output: a model folder.
        change: what to do to its manifest; file hashes are taken afterwards.
        card: a section in Markdown, headed by `## …`; it replaces one of the same heading.
        add: writes further files into the folder.
        check: looks at the new folder before it is put in place; what it raises leaves the old one.
    """
    manifest = read_manifest(output)
    check_files(output, manifest, list(manifest.files))
    with replacing(output) as folder:
        shutil.copytree(output, folder, dirs_exist_ok=True)
        add(folder)
        heading = card.strip().splitlines()[0]
        before, *sections = (folder / CARD).read_text().split("\n## ")
        kept = [f"## {section.strip()}" for section in sections if f"## {section}".splitlines()[0] != heading]
        (folder / CARD).write_text("\n\n".join([before.strip(), *kept, card.strip()]) + "\n")
        manifest = msgspec.structs.replace(change(manifest), files=hash_files(folder))
        write_manifest(folder, manifest)
        check(folder, manifest)
    return manifest


def hash_files(folder: Path) -> dict[str, str]:
    """Return the sha256 of every file in the folder but the manifest, by name."""
    return {path.name: sha256(path) for path in sorted(folder.iterdir()) if path.name != MANIFEST}


def version_of(name: str, files: dict[str, str]) -> str:
    """Return the model's version: its name and a digest of the files that decide what vectors it makes."""
    names = {file for file in files if file.endswith(".onnx") or file == "tokenizer.json"} - {DRIFT_FILE}
    decisive = {file: files[file] for file in names}
    return f"{name}-{hashlib.sha256(msgspec.json.encode(decisive, order='sorted')).hexdigest()[:8]}"


def library_versions() -> dict[str, str]:
    """Return the versions of the libraries that a training and an export go through, of those that are installed."""
    installed = {}
    for library in LIBRARIES:
        with suppress(PackageNotFoundError):
            installed[library] = version(library)
    return installed


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `manifest.json`, synced to disk: it comes last, so a folder that has one is whole."""
    with (folder / MANIFEST).open("wb") as file:
        file.write(msgspec.json.format(msgspec.json.encode(manifest), indent=1))
        file.flush()
        os.fsync(file.fileno())
