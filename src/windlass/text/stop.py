"""Stop strings in a stream of text."""

from __future__ import annotations

from collections.abc import Sequence

from windlass.errors import InvalidRequestError


class StopStrings:
    """Passes text on until a stop string is complete; no part of it is ever passed on.

    Text that may be the beginning of a stop string is held back until it is decided. The stop string that is complete
    first wins; of several complete at the same character, the longest. The outcome does not depend on how the
    text is cut into pieces. Not thread-safe: one per stream.

    Args:
        stops: the stop strings.

    Attributes:
        found: the stop string that ended the text, once there is one.

    Raises:
        InvalidRequestError: a stop string is empty.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        if not all(stops):
            raise InvalidRequestError("a stop string must not be empty", param="stop")
        self._stops = tuple(dict.fromkeys(stops))
        self._held = ""
        self.found: str | None = None

    def push(self, text: str) -> tuple[str, bool]:
        """(the text that may be passed on, whether a stop string was found). After a stop there is no more text."""
        if self.found is not None:
            return "", True
        if not self._stops:
            return text, False
        text = self._held + text
        found = [(start + len(stop), start, stop) for stop in self._stops if (start := text.find(stop)) >= 0]
        if found:
            _, start, self.found = min(found)
            self._held = ""
            return text[:start], True
        cut = self._undecided_from(text)
        self._held = text[cut:]
        return text[:cut], False

    def flush(self) -> str:
        """What is held back, when the text ends without a stop string."""
        held, self._held = self._held, ""
        return held

    def _undecided_from(self, text: str) -> int:
        """The first position from which the rest of ``text`` begins a stop string."""
        first = len(text)
        for stop in self._stops:
            position = text.find(stop[0], max(0, len(text) - len(stop) + 1))
            while 0 <= position < first and not stop.startswith(text[position:]):
                position = text.find(stop[0], position + 1)
            if position >= 0:
                first = min(first, position)
        return first
