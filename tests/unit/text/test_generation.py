from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from support.text_files import write_json
from windlass.errors import LoadError
from windlass.text.generation import GenerationDefaults, read_generation_defaults


def test_nothing_given(tmp_path: Path) -> None:
    assert read_generation_defaults(tmp_path, {}, None, None) == GenerationDefaults()


def test_end_ids_of_all_three_files_end_an_answer(tmp_path: Path) -> None:
    write_json(tmp_path, generation_config={"eos_token_id": [1, 2], "temperature": 0.6, "top_p": 0.95, "top_k": 20})
    defaults = read_generation_defaults(tmp_path, {"eos_token_id": 3}, None, 4)
    assert defaults == GenerationDefaults(stop_token_ids=frozenset({1, 2, 3, 4}), temperature=0.6, top_p=0.95, top_k=20)


def test_mlc_takes_both_from_its_own_file(tmp_path: Path) -> None:
    write_json(tmp_path, generation_config={"eos_token_id": 1, "temperature": 0.6})
    mlc = {"eos_token_id": [7], "temperature": 1, "top_p": 0.9, "repetition_penalty": 1.1, "presence_penalty": 0.0}
    defaults = read_generation_defaults(tmp_path, {"eos_token_id": 3}, mlc, 4)
    assert defaults == GenerationDefaults(
        stop_token_ids=frozenset({7}), temperature=1.0, top_p=0.9, repetition_penalty=1.1, presence_penalty=0.0
    )


@pytest.mark.parametrize(
    ("values", "temperature"),
    [
        ({"do_sample": False, "temperature": 0.6}, 0.0),
        ({"do_sample": True, "temperature": 0.6}, 0.6),
        ({"temperature": 0.6}, 0.6),
        ({"do_sample": True}, None),
    ],
)
def test_sampling_turned_off_is_temperature_zero(
    tmp_path: Path, values: dict[str, Any], temperature: float | None
) -> None:
    write_json(tmp_path, generation_config=values)
    assert read_generation_defaults(tmp_path, {}, None, None).temperature == temperature


def test_minus_one_is_no_top_k_and_null_is_not_given(tmp_path: Path) -> None:
    write_json(tmp_path, generation_config={"top_k": -1, "top_p": None, "eos_token_id": None, "max_length": 20})
    assert read_generation_defaults(tmp_path, {"eos_token_id": None}, None, None) == GenerationDefaults(top_k=0)


@pytest.mark.parametrize(
    "values",
    [
        {"temperature": -0.1},
        {"temperature": "warm"},
        {"temperature": True},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"top_p": 1.5},
        {"min_p": -1},
        {"top_k": 1.5},
        {"top_k": -2},
        {"repetition_penalty": 0},
        {"eos_token_id": -1},
        {"eos_token_id": "2"},
        {"eos_token_id": [2, True]},
    ],
)
def test_values_out_of_range_name_the_file(tmp_path: Path, values: dict[str, Any]) -> None:
    write_json(tmp_path, generation_config=values)
    with pytest.raises(LoadError, match=rf"generation_config\.json: {next(iter(values))} must be"):
        read_generation_defaults(tmp_path, {}, None, None)
    with pytest.raises(LoadError, match=rf"mlc-chat-config\.json: {next(iter(values))} must be"):
        read_generation_defaults(tmp_path, {}, values, None)


def test_end_ids_of_the_config_are_checked_too(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"[/\\]config\.json: eos_token_id must be"):
        read_generation_defaults(tmp_path, {"eos_token_id": "x"}, None, None)


def test_a_broken_file_is_a_load_error(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text("{")
    with pytest.raises(LoadError, match=r"generation_config\.json: the file is not JSON"):
        read_generation_defaults(tmp_path, {}, None, None)
