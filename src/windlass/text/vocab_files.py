"""Vocabularies in files of their own: vocab.json with merges.txt (byte-level BPE), and vocab.txt (WordPiece)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from windlass.errors import LoadError
from windlass.json_files import read_json_object
from windlass.text.byte_ranks import QWEN_2
from windlass.text.library_tokenizer import LibraryEncoder, read_library_json
from windlass.text.split_patterns import GPT2
from windlass.text.tokenizer_config import MAX_TOKENS, DeclaredToken, declared_tokens, special_contents, token_content
from windlass.text.tokenizer_facts import NO_TEXT, TokenizerFacts

_PATTERNS = {
    **dict.fromkeys(("GPT2Tokenizer", "CodeGenTokenizer", "RobertaTokenizer"), GPT2),
    "Qwen2Tokenizer": QWEN_2,
}
"""The classes that read vocab.json and merges.txt, and how they cut words; also with ``Fast`` behind their name."""

_BERT = {"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "mask_token": "[MASK]"}


def read_byte_level(
    path: Path, merges: bytes, config: Mapping[str, Any]
) -> tuple[LibraryEncoder, TokenizerFacts, Path]:
    """Make a tokenizer of GPT-2's files, which Qwen2 has too, with a pattern of its own.

    Args:
        path: vocab.json; tokens may be declared in the files beside it.
        merges: the content of the merges.txt beside it.
        config: tokenizer_config.json.

    Returns:
        The encoder, what is to be known of it, and ``path``.

    Raises:
        LoadError: a file is broken, or the tokenizer is of another class.
    """
    name = str(config.get("tokenizer_class") or "GPT2Tokenizer").removesuffix("Fast")
    if name not in _PATTERNS:
        raise LoadError(
            path, f"is not known to be read by {name}; tokenizer_class must be one of {', '.join(_PATTERNS)}"
        )
    vocab = read_json_object(path)
    if len(vocab) > MAX_TOKENS or not all(type(one) is int and 0 <= one < MAX_TOKENS for one in vocab.values()):
        raise LoadError(path, f"must give each of at most {MAX_TOKENS} tokens an id from 0 to {MAX_TOKENS - 1}")
    merges_path = path.with_name("merges.txt")
    lines = [line.rstrip("\r") for line in _text(merges_path, merges).split("\n")]
    pairs = [line.split(" ") for line in lines if line.strip() and not line.startswith("#version")]
    if bad := next((pair for pair in pairs if len(pair) != 2), None):
        raise LoadError(merges_path, f"{' '.join(bad)[:80]!r} is not two entries with a space between them")
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    steps: list[dict[str, Any]] = [{**byte_level, "add_prefix_space": config.get("add_prefix_space") is True}]
    is_qwen = _PATTERNS[name] == QWEN_2
    if is_qwen:
        split = {"type": "Split", "pattern": {"Regex": QWEN_2}, "behavior": "Isolated", "invert": False}
        steps = [split, {**byte_level, "use_regex": False}]
    return _assemble(
        path,
        config,
        {"type": "BPE", "merges": pairs},
        vocab,
        normalizer={"type": "NFC"} if is_qwen else None,
        pre_tokenizer={"type": "Sequence", "pretokenizers": steps},
        decoder=byte_level,
    )


def read_word_piece(path: Path, data: bytes, config: Mapping[str, Any]) -> tuple[LibraryEncoder, TokenizerFacts, Path]:
    """Make BERT's tokenizer (Devlin et al., 2018): uncased unless ``do_lower_case`` of tokenizer_config.json is false.

    Args:
        path: vocab.txt; tokens may be declared in the files beside it.
        data: its content.
        config: tokenizer_config.json.

    Returns:
        The encoder, what is to be known of it, and ``path``.

    Raises:
        LoadError: a file is broken.
    """
    lines = _text(path, data).removesuffix("\n").split("\n")
    if len(lines) > MAX_TOKENS:
        raise LoadError(path, f"has {len(lines)} lines; a vocabulary has at most {MAX_TOKENS}")
    vocab = {line.rstrip("\r"): number for number, line in enumerate(lines)}
    config = {**{name: text for name, text in _BERT.items() if text in vocab}, **config}
    unknown = token_content(config.get("unk_token"))
    if unknown is None:
        raise LoadError(path, "has no token for unknown words: [UNK], or unk_token in tokenizer_config.json")
    cls, sep = (token_content(config.get(name)) for name in ("cls_token", "sep_token"))
    model, parts = word_piece_parts(
        unknown,
        lowercase=config.get("do_lower_case", True),
        strip_accents=config.get("strip_accents"),
        handle_chinese_chars=config.get("tokenize_chinese_chars", True),
    )
    between = between_tokens(cls, sep, vocab) if cls in vocab and sep in vocab else None
    return _assemble(path, config, model, vocab, post_processor=between, **parts)


def word_piece_parts(
    unknown: str, *, lowercase: object, strip_accents: object = None, handle_chinese_chars: object = True
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The ``model`` of BERT's tokenizer without its vocabulary, and the parts of tokenizer.json around it."""
    model = {
        "type": "WordPiece",
        "unk_token": unknown,
        "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 100,
    }
    normalizer = {
        "type": "BertNormalizer",
        "clean_text": True,
        "handle_chinese_chars": handle_chinese_chars,
        "strip_accents": strip_accents,
        "lowercase": lowercase,
    }
    return model, {
        "normalizer": normalizer,
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
    }


def _text(path: Path, data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise LoadError(path, f"is not UTF-8 at byte {error.start}") from None


def _assemble(
    path: Path, config: Mapping[str, Any], model: dict[str, Any], vocab: dict[str, int], **parts: object
) -> tuple[LibraryEncoder, TokenizerFacts, Path]:
    """A tokenizer.json of its parts, with the tokens that the files beside the vocabulary declare."""
    added = declared_tokens(path.parent, config)
    texts = {number: text for text, number in vocab.items()}
    for token in added:
        known = (texts.get(token.token_id, token.content), vocab.get(token.content, token.token_id))
        if known != (token.content, token.token_id):
            reason = f"token {token.content!r} has id {token.token_id}, but {path.name} has {known[0]!r} and {known[1]}"
            raise LoadError(path.with_name("tokenizer_config.json"), reason)
    vocab = {**vocab, **{token.content: token.token_id for token in added}}
    taken = set(vocab.values())
    vocab |= {f"{NO_TEXT}{number}": number for number in range(max(taken, default=0)) if number not in taken}
    known_texts = {token.content for token in added}
    for content in special_contents(config):
        if content in vocab and content not in known_texts:
            added.append(DeclaredToken(token_id=vocab[content], content=content))
    whole = {
        "version": "1.0",
        "added_tokens": [token.to_json() for token in sorted(added, key=lambda token: token.token_id)],
        **parts,
        "model": {**model, "vocab": vocab},
    }
    return read_library_json(json.dumps(whole), path, config)


def between_tokens(first: str | None, last: str | None, vocab: Mapping[str, int]) -> dict[str, Any]:
    """The post-processor that puts a text between two tokens, either of which may be None."""
    before, after = ([] if text is None else [{"SpecialToken": {"id": text, "type_id": 0}}] for text in (first, last))
    a, b = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    used = [text for text in (first, last) if text is not None]
    return {
        "type": "TemplateProcessing",
        "single": [*before, a, *after],
        "pair": [*before, a, *after, b, *after],
        "special_tokens": {text: {"id": text, "ids": [vocab[text]], "tokens": [text]} for text in used},
    }
