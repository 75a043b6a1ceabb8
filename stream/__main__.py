"""`python -m stream` is `driftstream`."""

from stream.cli import app

app()
