"""`python -m botplane` is the command `botplane`."""

from botplane.cli import app

app()
