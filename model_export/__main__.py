"""`python -m model_export`, which `accelerate launch -m` needs."""

from model_export.cli import app

app()
