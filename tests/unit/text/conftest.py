"""Two real tokenizers, and the library's own objects of the same files, which recognise special tokens in text."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer as Library

from windlass.text.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def qwen2(data_dir: Path) -> Tokenizer:
    return Tokenizer.from_directory(data_dir / "tokenizers" / "qwen2")


@pytest.fixture(scope="session")
def phi3(data_dir: Path) -> Tokenizer:
    return Tokenizer.from_directory(data_dir / "tokenizers" / "phi-3")


@pytest.fixture(scope="session")
def qwen2_library(qwen2: Tokenizer) -> Library:
    return Library.from_file(str(qwen2.path))


@pytest.fixture(scope="session")
def phi3_library(phi3: Tokenizer) -> Library:
    return Library.from_file(str(phi3.path))
