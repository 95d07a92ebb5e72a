"""The table of families in docs/models.md, held to the registry, the goldens and the models that the tests run on."""

from __future__ import annotations

import re
from pathlib import Path

from support.llama_cpp_files import FAMILY_FILES
from support.model_forms import CONVERTED_MLC, DENSE_GGUF, LAYER_NORM_GGUF, MIXTURE_GGUF, MIXTURE_MLC, PLAIN_GGUF
from support.tiny_embedding import EMBEDDING_CASES
from support.tiny_models import CASES
from windlass.models.registry import FAMILIES

ROOT = Path(__file__).resolve().parents[2]
GOLDENS = ROOT / "tests" / "conformance" / "goldens"
DOCUMENT = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")

SEEING = {"gemma3", "llama4", "mistral3"}
"""Families that are the text model of another one, and have no golden of their own."""


def families(*names: str) -> set[str]:
    """Of tiny models."""
    return {{**CASES, **EMBEDDING_CASES}[name].config["model_type"] for name in names}


EMBEDDING = families(*EMBEDDING_CASES)
HUGGING_FACE = {"T": families(*CASES), "E": EMBEDDING, "S": SEEING}
GGUF = {
    "G": families(*PLAIN_GGUF, *DENSE_GGUF, *LAYER_NORM_GGUF),
    "X": families(*MIXTURE_GGUF),
    "L": families(*FAMILY_FILES),
    "E": EMBEDDING,
}
MLC = {"C": families(*CONVERTED_MLC), "M": families(*MIXTURE_MLC), "S": SEEING}
"""The families that each letter of the table stands for."""


def rows(header: str) -> list[list[str]]:
    """The cells of the table that begins so."""
    table = DOCUMENT[DOCUMENT.index(header) :].split("\n\n")[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]


def cell(name: str, family: str, tests: dict[str, set[str]]) -> str:
    """What a cell must say of a family that is called ``name`` there."""
    letters = [letter for letter, tested in tests.items() if family in tested]
    assert letters, f"nothing tests {family} as {name}"
    return " ".join([f"`{name}`", *letters])


def test_every_family_has_a_row_and_no_other_has() -> None:
    found = [re.findall("`(.+?)`", row[1])[0] for row in rows("| family |")]
    assert sorted(found) == sorted(FAMILIES)


def test_the_cells_are_what_is_read_and_tested() -> None:
    architectures = {family.gguf.architecture for family in FAMILIES.values() if family.gguf}
    for _, hugging_face, gguf, mlc in rows("| family |"):
        family = FAMILIES[re.findall("`(.+?)`", hugging_face)[0]]
        name = family.model_type
        assert hugging_face == cell(name, name, HUGGING_FACE)
        if family.gguf:
            assert gguf == cell(family.gguf.architecture, name, GGUF)
        else:
            assert gguf.removeprefix("as `").removesuffix("`") in architectures
        if family.mlc:
            assert mlc == cell(name, name, MLC)
        else:
            assert re.fullmatch("MLC has none|not read.*", mlc)


def test_every_family_has_a_golden() -> None:
    cases = {**CASES, **EMBEDDING_CASES}
    with_golden = families(*(name for name in cases if (GOLDENS / f"{name}.npz").is_file()))
    assert with_golden | SEEING == set(FAMILIES)


def test_the_letters_are_those_of_tests_that_are_there() -> None:
    found = {letter: re.findall(r"`(tests/\S+\.py)`", tests) for letter, tests, _ in rows("| | tests |")}
    assert found.keys() == {*HUGGING_FACE, *GGUF, *MLC}
    for paths in found.values():
        assert paths
        assert all((ROOT / path).is_file() for path in paths)
