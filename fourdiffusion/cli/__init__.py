"""The command line, and the only home of Hydra."""

from fourdiffusion.cli.main import main

__all__ = ["main"]
