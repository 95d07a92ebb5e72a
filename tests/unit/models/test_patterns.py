"""Regular expressions for names: what ``re`` says, in a time that ``re`` does not promise."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from windlass.models.patterns import NamePattern

NAMES = [
    "",
    "q_proj",
    "model.layers.0.self_attn.q_proj",
    "model.layers.11.mlp.down_proj",
    "model.language_model.layers.1.mlp.experts.gate_up_proj",
    "a.b",
    "aa",
    "b",
]
PATTERNS = [
    "q_proj",
    r".*\.q_proj",
    r".*(q|v)_proj$",
    r"^model\.layers\.(0|11)\..*",
    r".*\.layers\.\d+\.(?:self_attn|mlp)\.\w+",
    r".*\.layers\.[0-9]{2}\..*",
    r".*\.layers\.[^0]{1,}\..*",
    r"(?!.*mlp).*",
    r"(?=.*mlp)model.*?",
    r"(?:.*?(?:language|text).*?(?:self_attn|mlp).*?(?:k_proj|gate_up_proj).*?)|(?:\bmodel\.layers\.[\d]{1,}\.(?:mlp)\..*)",
    r".*\bmlp\b.*",
    r".*\Bproj",
    r"(?P<part>a|b)+",
    r"(a|b|\.){0,3}",
    r"(a*)*b?",
    r"a{2}",
    r"[a-z.]+|",
    r"\Aa+\Z",
    r"[]a]+",
    r"[^]]\.[\w]",
    "",
]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_as_re_says(pattern: str) -> None:
    assert [NamePattern(pattern).matches(name) for name in NAMES] == [
        re.fullmatch(pattern, name) is not None for name in NAMES
    ]
    ends = re.compile(rf"(.*\.)?({pattern})$")
    found = [NamePattern(pattern).matches_end(name) for name in NAMES]
    assert found == [ends.match(name) is not None for name in NAMES]


pieces = st.recursive(
    st.sampled_from(["a", "b", ".", r"\.", "[ab]", "[^a]", r"\w", r"\b", "^", "$"]),
    lambda inner: st.one_of(
        st.tuples(inner, inner).map("".join),
        st.tuples(inner, inner).map(lambda two: f"(?:{two[0]}|{two[1]})"),
        st.tuples(inner, st.sampled_from(["*", "+", "?", "*?", "{2}", "{1,2}", "{1,}"])).map(
            lambda two: f"({two[0]}){two[1]}"
        ),
        inner.map(lambda one: f"(?!{one})"),
    ),
    max_leaves=6,
)


@given(pieces, st.text("ab._", max_size=6))
@settings(max_examples=300, deadline=None)
def test_as_re_says_of_anything(pattern: str, name: str) -> None:
    assert NamePattern(pattern).matches(name) == (re.fullmatch(pattern, name) is not None), pattern


@pytest.mark.parametrize(
    "pattern",
    [
        "(a+)+x",
        "(a|a)*x",
        "a?" * 100 + "a" * 40 + "x",
        "(?:a|a)" * 100 + "x",
        "(.*)*" * 20 + "x",
        "((a{1000}){1000}){1000}",
        "(((((a*)*)*)*)*)*x",
        ".*" * 300 + "x",
    ],
)
def test_what_takes_re_for_ever_does_not_take_long(pattern: str) -> None:
    started = time.monotonic()
    assert not NamePattern(pattern).matches("a" * 60)
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    "pattern",
    [
        "(", ")", "(a", "a)", "[a", "*", "a**", "a*+", "a{1}{2}", "+a", "?", "{2}", "\\", r"\1", r"(a)\1", "(?i)a",
        "(?<=a)b", "(?<!a)b", "(?P=x)", "(?#x)", "(?>a)", r"\p", r"\x41", "[z-a]", "a{1001}", "a{1,99999999999999}",
        "a" * 5000, "(" * 60 + ")" * 60, "[\\", r"\N", "[[a]]", "[a--b]", "[a&&b]",
    ],
)  # fmt: skip
def test_what_is_not_accepted(pattern: str) -> None:
    with pytest.raises(ValueError, match=r"\S"):
        NamePattern(pattern)
