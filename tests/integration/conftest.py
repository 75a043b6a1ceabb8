"""What the tests of the whole worker share."""

from pathlib import Path

import pytest

DEFAULT_MODEL = Path(__file__).parents[2] / "models" / "default"


@pytest.fixture(scope="session")
def model_folder() -> Path:
    """The exported model that workers serve; `make test` makes it first."""
    assert (DEFAULT_MODEL / "manifest.json").is_file(), f"no model in {DEFAULT_MODEL}; run `make test`, which exports it"
    return DEFAULT_MODEL
