"""One file per engine, each run by that engine's own Python: ``python <driver>.py <request as JSON>``."""
