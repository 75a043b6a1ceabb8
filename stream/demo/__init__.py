"""`driftstream demo`: the whole system on this machine, and something to watch."""

from stream.demo.run import DemoError, run_demo

__all__ = ["DemoError", "run_demo"]
