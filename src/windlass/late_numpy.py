"""numpy, imported when something of it is first used.

That takes longer than to map the packed weights of a model, and a start that finds them needs nothing of it before its
first token. Modules on the way there have numpy from here.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__all__ = ["np"]

if TYPE_CHECKING:
    import numpy as np
else:

    class _Numpy:
        """Stands for the module."""

        def __getattr__(self, name: str) -> Any:
            value = getattr(import_module("numpy"), name)
            setattr(self, name, value)  # and from now on this is not asked
            return value

    np = _Numpy()
