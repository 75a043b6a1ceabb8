"""What several folders of tests share."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder made by the real exporter from a seeded BERT of two layers; it takes some seconds, once."""
    from tiny_model import write_model  # PyTorch takes seconds to import, and most tests need no model

    return write_model(tmp_path_factory.mktemp("tiny"))
