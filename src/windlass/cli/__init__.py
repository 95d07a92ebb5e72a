"""The command line: ``windlass chat``, ``convert`` and ``doctor``."""

from windlass.cli.app import main

__all__ = ["main"]
