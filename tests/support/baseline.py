"""What a process holds, before and after."""

from __future__ import annotations

import gc
import threading

from support.lifecycle import (
    PROMPT,
    mapped_files,
    num_descriptors,
    num_mappings,
    num_threads,
    resident_bytes,
    wait_for,
)
from windlass.serve.memory import return_free_memory


class Baseline:
    """What the process holds now."""

    def __init__(self) -> None:
        self.threads, self.descriptors, self.files = num_threads(), num_descriptors(), mapped_files()
        self.mappings, self.resident = num_mappings(), resident_bytes()

    def check(self, what: object = "") -> None:
        """The process holds the same again. The system sees threads off a moment after they have been joined."""
        assert wait_for(lambda: num_threads() <= self.threads, PROMPT), (what, threading.enumerate())
        assert num_descriptors() == self.descriptors, what
        assert mapped_files() == self.files, what

    def check_memory(self) -> None:
        """After many engines no memory is missing, but for what the C library keeps of threads.

        Errors that were raised may be part of reference cycles; what their frames hold is small.
        """
        gc.collect()
        return_free_memory()
        assert num_mappings() <= self.mappings + 16
        assert resident_bytes() - self.resident < 8 << 20
