"""What models are called."""

from __future__ import annotations

import pytest

from windlass.server.served import default_name


@pytest.mark.parametrize(
    ("model", "name"),
    [
        (None, "windlass-demo"),
        ("HF://org/name", "org/name"),
        ("/models/mine", "mine"),
        ("models/mine/", "mine"),
        ("mine-Q4_K_M.gguf", "mine-Q4_K_M"),
        ("/models/mine-00001-of-00003.gguf", "mine"),
        (".gguf", ".gguf"),
        ("/", "/"),
    ],
)
def test_a_model_has_the_name_of_where_it_lies(model: str | None, name: str) -> None:
    assert default_name(model) == name
