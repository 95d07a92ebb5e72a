"""Windlass beside other CPU engines on the same work; ``benchmarks/compare.py`` is the command."""
