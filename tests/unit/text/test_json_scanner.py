from __future__ import annotations

import json
import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from windlass.text.json_scanner import JsonScanner

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=12,
)
objects = st.dictionaries(st.text(max_size=5), values, max_size=3)
written = st.builds(json.dumps, objects, ensure_ascii=st.booleans(), indent=st.sampled_from([None, 1]))


def scan(text: str, sizes: list[int]) -> tuple[int, bool, bool]:
    """(where the scanner stopped, done, failed), with ``text`` cut into pieces of these sizes, round and round."""
    scanner = JsonScanner()
    position, turn = 0, 0
    while position < len(text) and not scanner.done and not scanner.failed:
        size = sizes[turn % len(sizes)]
        turn += 1
        piece = text[position : position + size]
        used = scanner.scan(piece, 0)
        assert used == len(piece) or scanner.done or scanner.failed
        position += used
    return position, scanner.done, scanner.failed


def is_json(text: str) -> bool:
    def refuse(name: str) -> None:
        raise ValueError(name)

    try:
        json.loads(text, parse_constant=refuse)
    except ValueError:
        return False
    return True


sizes = st.lists(st.integers(1, 7), min_size=1, max_size=5)


@given(text=written, rest=st.text(max_size=5), sizes=sizes)
def test_the_end_of_an_object_is_found(text: str, rest: str, sizes: list[int]) -> None:
    assert scan(text + rest, sizes) == (len(text), True, False)


@settings(max_examples=300)
@example(text='{"a": 01}')
@example(text='{"a": -}')
@example(text='{"a": 1.}')
@example(text='{"a": 1e+}')
@example(text='{"a": [1,]}')
@example(text='{"a": 1,}')
@example(text='{"a" 1}')
@example(text='{"a": "\\x"}')
@example(text='{"a": "\\u00zz"}')
@example(text='{"a": "\n"}')
@example(text='{"a": nul}')
@example(text='{"a": NaN}')
@example(text='{"a": [}]')
@example(text='{"a": -0.0e-00}')
@given(
    text=st.builds("{}{}".format, st.sampled_from(["{", '"', '{"a":']), st.text('{}[]",:\\ue+-.01 tn\n', max_size=14))
)
def test_what_is_recognised_is_what_json_reads(text: str) -> None:
    end, done, failed = scan(text, [1])
    valid = [length for length in range(len(text) + 1) if is_json(text[:length])]
    assert done == bool(valid)
    if done:
        assert end == valid[0]
    if failed:
        assert end < len(text)


@given(text=written, at=st.integers(0), junk=st.sampled_from('{}[]",:x\\\n'))
def test_a_changed_character_fails_only_what_json_refuses(text: str, at: int, junk: str) -> None:
    at %= len(text)
    changed = text[:at] + junk + text[at + 1 :]
    end, done, failed = scan(changed, [3])
    if is_json(changed):
        assert (end, done, failed) == (len(changed), True, False)
    else:
        assert not done or end < len(changed)
        assert not failed or end >= at


@pytest.mark.parametrize("text", ["x", "1", "[1]", "true", " {}"])
def test_only_objects_and_strings_are_taken(text: str) -> None:
    assert scan(text, [9]) == (0, False, True)


def test_depth_needs_no_recursion_and_time_is_linear() -> None:
    deep = '{"a":[' * 200_000
    started = time.thread_time()
    assert scan(deep, [4096]) == (len(deep), False, False)
    assert scan(deep + "1" + "]}" * 200_000, [1 << 20]) == (len(deep) + 1 + 400_000, True, False)
    assert time.thread_time() - started < 20.0
