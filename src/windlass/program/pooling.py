"""From the hidden states of a text to its embedding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from windlass.late_numpy import np

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Pooling:
    """Which hidden states of a text are its embedding: its last token's, its first one's ("cls"), or the mean of all.

    With ``normalize`` an embedding has length 1. (Reimers and Gurevych, 2019)
    """

    kind: Literal["last", "cls", "mean"]
    normalize: bool

    def num_rows(self, num_tokens: int, *, completes: bool) -> int:
        """How many of the last rows of a piece of a text are needed, of ``num_tokens``; all for cls and mean."""
        if self.kind == "last":
            return int(completes)
        return num_tokens

    def add(self, pooled: NDArray[np.float32] | None, rows: NDArray[np.float32]) -> NDArray[np.float32] | None:
        """Add the needed ``rows`` [n, width] of the next piece to what the pieces before it gave."""
        if self.kind == "last":
            return rows[-1].copy() if len(rows) else None
        if self.kind == "cls":
            return rows[0].copy() if pooled is None else pooled
        # Row by row, so that the sum does not depend on how the text was cut.
        terms = rows if pooled is None else np.concatenate((pooled[None], rows))
        total: NDArray[np.float32] = terms.sum(axis=0, dtype=np.float32)
        return total

    def finish(self, pooled: NDArray[np.float32], num_tokens: int) -> NDArray[np.float32]:
        """Return the embedding, float32 [width], of a text of ``num_tokens``.

        Raises:
            FloatingPointError: it holds a NaN or an infinity.
        """
        embedding = pooled / np.float32(num_tokens) if self.kind == "mean" else pooled
        if not np.isfinite(embedding).all():
            raise FloatingPointError("the model's hidden states hold a number that is not finite")
        return normalized(embedding) if self.normalize else embedding


def normalized(vector: NDArray[np.float32]) -> NDArray[np.float32]:
    """The vector at length 1; zeros stay zeros."""
    length = np.linalg.norm(vector)
    return vector if length == 0 else (vector / length).astype(np.float32)
