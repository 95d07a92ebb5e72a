"""Hypothesis strategies for JSON from clients that mean harm, or do not know better."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hypothesis import strategies as st

_scalars = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(max_size=8)

json_values: st.SearchStrategy[Any] = st.recursive(
    _scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
"""Any JSON value."""


def mixed(fields: Mapping[str, st.SearchStrategy[Any]]) -> st.SearchStrategy[dict[str, Any]]:
    """Objects with all of ``fields``; in some of them one is missing, or any JSON value."""
    one_wrong = st.tuples(st.sampled_from(sorted(fields)), st.just(_ABSENT) | json_values)
    changes = st.sampled_from([False] * 7 + [True]).flatmap(lambda change: one_wrong if change else st.none())
    return st.builds(_changed, st.fixed_dictionaries(dict(fields)), changes)


_ABSENT = object()


def _changed(value: dict[str, Any], change: tuple[str, Any] | None) -> dict[str, Any]:
    name, other = change or (None, None)
    return {
        field: other if field == name else right
        for field, right in value.items()
        if field != name or other is not _ABSENT
    }
