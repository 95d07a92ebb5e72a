"""Byte-level BPE from lists of byte strings by rank: tiktoken's files, and Mistral's ``tekken.json``.

Such a file gives no merges: the pair that becomes the token of the lowest rank merges first, whatever its parts are.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from windlass.errors import LoadError
from windlass.json_files import read_json_object
from windlass.text.byte_decoding import byte_level_alphabet
from windlass.text.library_tokenizer import LibraryEncoder, read_library_json
from windlass.text.tokenizer_config import MAX_TOKEN_LENGTH, MAX_TOKENS, DeclaredToken, declared_tokens
from windlass.text.tokenizer_facts import NO_TEXT, TokenizerFacts

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN_2 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_REST}"
LLAMA_3 = QWEN_2.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
_CASED = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*",
)
_CASED_REST = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
TEKKEN = rf"{_CASED[0]}|{_CASED[1]}|\p{{N}}|{_CASED_REST}"
GPT_4O = rf"{_CASED[0]}{_CONTRACTIONS}?|{_CASED[1]}{_CONTRACTIONS}?|\p{{N}}{{1,3}}|{_CASED_REST}"
_UPPER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]"
_LOWER = r"\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]"
_KIMI = (
    rf"[\p{{Han}}]+|[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]*[{_LOWER}]+{_CONTRACTIONS}?"
    rf"|[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]+[{_LOWER}]*{_CONTRACTIONS}?|\p{{N}}{{1,3}}|{_REST}"
)

_LINE = re.compile(rb"([A-Za-z0-9+/]+={0,2}) ([0-9]{1,8})")
_MISTRAL = (
    *("<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]"),
    *("[/TOOL_RESULTS]", "[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]", "[IMG_END]", "[PREFIX]", "[MIDDLE]"),
    *("[SUFFIX]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CONTENT]"),
)
"""The special tokens of files that name none (before version 7)."""


@dataclass(frozen=True, slots=True)
class _Family:
    """What a tiktoken file does not say of itself.

    Attributes:
        pattern: cuts a text into words.
        specials: the special tokens behind the ranks.
        normalizes: text is brought to Unicode's form C.
        config: what tokenizer_config.json says by default.
    """

    pattern: str
    specials: tuple[str, ...] = ()
    normalizes: bool = False
    config: Mapping[str, Any] = field(default_factory=dict)


_LLAMA_SPECIALS = (
    *("<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>", "<|reserved_special_token_1|>"),
    *("<|finetune_right_pad_id|>", "<|reserved_special_token_2|>", "<|start_header_id|>", "<|end_header_id|>"),
    *("<|eom_id|>", "<|eot_id|>", "<|python_tag|>"),
    *(f"<|reserved_special_token_{number}|>" for number in range(3, 248)),
)
_FAMILIES = {
    "Llama 3": _Family(
        LLAMA_3,
        _LLAMA_SPECIALS,
        config={"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>", "add_bos_token": True},
    ),
    "Qwen": _Family(
        QWEN_2,
        ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{number}|>" for number in range(205))),
        normalizes=True,
        config={"eos_token": "<|endoftext|>"},
    ),
    "GLM-4": _Family(LLAMA_3),
    "Kimi": _Family(_KIMI, ("<|reserved_token_{}|>",) * 256),
}
_CLASSES = {"QWenTokenizer": "Qwen", "ChatGLM4Tokenizer": "GLM-4", "TikTokenTokenizer": "Kimi"}
_LLAMA_RANKS = 128_000


def is_tiktoken(data: bytes) -> bool:
    """Whether a file that begins with ``data`` is a list of base64 strings and ranks."""
    return _LINE.match(data) is not None


def read_tiktoken(path: Path, data: bytes, config: Mapping[str, Any]) -> tuple[LibraryEncoder, TokenizerFacts, Path]:
    """Make a tokenizer of a tiktoken file.

    The pattern that cuts words is in no file. It is known by ``tokenizer_class`` of tokenizer_config.json (Qwen 1,
    GLM-4, Kimi), by the name ``qwen.tiktoken``, or by the 128,000 ranks of Llama 3.

    Args:
        path: the file; tokens may be declared in the files beside it.
        data: its content.
        config: tokenizer_config.json.

    Returns:
        The encoder, what is to be known of it, and ``path``.

    Raises:
        LoadError: a file is broken, or of a model that is not known.
    """
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(data.split(b"\n"), 1):
        if not line.strip():
            continue
        match = _LINE.fullmatch(line.strip())
        if match is None:
            raise LoadError(path, f"line {number} is not a base64 string and a rank")
        ranks[_unbase64(match[1], path, f"line {number}")] = int(match[2])
        if len(ranks) > MAX_TOKENS:
            raise LoadError(path, f"has more than {MAX_TOKENS} lines")
    family = _family(path, len(ranks), config)
    first = max(ranks.values(), default=-1) + 1
    specials = {first + index: text.format(first + index) for index, text in enumerate(family.specials)}
    declared = {token.token_id: token for token in declared_tokens(path.parent, config)}
    specials = {token_id: text for token_id, text in specials.items() if token_id not in declared}
    added = [DeclaredToken(token_id=token_id, content=text) for token_id, text in specials.items()]
    return _make(
        path,
        ranks,
        [*added, *declared.values()],
        pattern=family.pattern,
        normalizes=family.normalizes,
        config={**family.config, **config},
    )


def _family(path: Path, num_ranks: int, config: Mapping[str, Any]) -> _Family:
    name = _CLASSES.get(str(config.get("tokenizer_class")))
    if name is None and path.name == "qwen.tiktoken":
        name = "Qwen"
    if name is None and num_ranks == _LLAMA_RANKS:
        name = "Llama 3"
    if name is None:
        raise LoadError(
            path,
            f"is a list of {num_ranks} ranks without the pattern that cuts words; known are Llama 3 "
            f"({_LLAMA_RANKS} ranks), and tokenizer_class {', '.join(_CLASSES)} in tokenizer_config.json",
        )
    return _FAMILIES[name]


def read_tekken(path: Path, config: Mapping[str, Any]) -> tuple[LibraryEncoder, TokenizerFacts, Path]:
    """Make a tokenizer of a ``tekken.json``: special tokens come first, and the vocabulary is cut to its size.

    Raises:
        LoadError: the file is broken.
    """
    whole = read_json_object(path)
    settings = whole.get("config")
    if not isinstance(settings, dict) or not isinstance(pattern := settings.get("pattern"), str):
        raise LoadError(path, "config.pattern must be a string")
    size, num_specials = (_count(settings, name, path) for name in ("default_vocab_size", "default_num_special_tokens"))
    given = whole.get("special_tokens")
    texts = _special_texts(given, path) if given is not None else dict(enumerate(_MISTRAL))
    if any(number >= num_specials for number in texts):
        raise LoadError(path, f"special_tokens must have ranks below {num_specials}, config.default_num_special_tokens")
    texts = {number: texts.get(number, f"<SPECIAL_{number}>") for number in range(num_specials)}
    ranks: dict[bytes, int] = {}
    vocab = whole.get("vocab")
    for index, token in enumerate(vocab if isinstance(vocab, list) else ()):
        text, rank = (token.get("token_bytes"), token.get("rank")) if isinstance(token, Mapping) else (None, None)
        if not isinstance(text, str) or rank != index:
            raise LoadError(path, f"vocab[{index}] must have token_bytes and the rank {index}")
        if num_specials + index < size:
            ranks[_unbase64(text.encode("utf-8", "replace"), path, f"vocab[{index}]")] = num_specials + index
    if num_specials + len(ranks) != size:
        raise LoadError(path, f"vocab has {len(ranks)} different tokens for {size - num_specials} ids")
    own = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    own = {name: text for name, text in own.items() if text in texts.values()}
    added = [DeclaredToken(token_id=token_id, content=text) for token_id, text in texts.items()]
    return _make(path, ranks, added, pattern=pattern, config={**own, "add_bos_token": True, **config})


def _count(settings: Mapping[str, Any], name: str, path: Path) -> int:
    number = settings.get(name)
    if type(number) is not int or not 0 <= number <= MAX_TOKENS:
        raise LoadError(path, f"config.{name} must be an integer from 0 to {MAX_TOKENS}")
    return number


def _special_texts(given: object, path: Path) -> dict[int, str]:
    texts: dict[int, str] = {}
    for token in given if isinstance(given, list) else ():
        text, rank = (token.get("token_str"), token.get("rank")) if isinstance(token, Mapping) else (None, None)
        if not isinstance(text, str) or not text or type(rank) is not int or rank in texts:
            raise LoadError(path, "special_tokens must be objects with token_str and a rank of their own")
        texts[rank] = text
    if len(set(texts.values())) < len(texts) or not texts or min(texts) < 0:
        raise LoadError(path, "special_tokens must be objects with token_str and a rank of their own")
    return texts


def _unbase64(text: bytes, path: Path, where: str) -> bytes:
    try:
        token = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        token = b""
    if not 0 < len(token) <= MAX_TOKEN_LENGTH:
        raise LoadError(path, f"{where} is not base64 of 1 to {MAX_TOKEN_LENGTH} bytes")
    return token


def _make(
    path: Path,
    ranks: Mapping[bytes, int],
    added: Sequence[DeclaredToken],
    *,
    pattern: str,
    config: Mapping[str, Any],
    normalizes: bool = False,
) -> tuple[LibraryEncoder, TokenizerFacts, Path]:
    """The tokenizer of byte strings with their ids, which rank them too."""
    if len(set(ranks.values())) < len(ranks) or not set(map(bytes, zip(range(256)))) <= ranks.keys():
        raise LoadError(path, "the vocabulary must have all 256 bytes, and no id twice")
    alphabet = {byte: letter for letter, byte in byte_level_alphabet().items()}
    written = {token: "".join(map(alphabet.__getitem__, token)) for token in ranks}
    vocab = {written[token]: token_id for token, token_id in ranks.items()}
    taken = set(ranks.values())
    if clash := next((token for token in added if token.token_id in taken), None):
        raise LoadError(path, f"token {clash.content!r} has id {clash.token_id}, which is that of another one")
    hidden = {token.token_id: token.content for token in added if token.special}
    visible = [token for token in added if not token.special]
    if clash := next((token for token in visible if token.content in vocab), None):
        raise LoadError(path, f"token {clash.content!r} is added to a vocabulary that has it already")
    vocab |= {token.content: token.token_id for token in visible}
    taken.update(vocab.values())
    last = max([*taken, *hidden])
    vocab |= {f"{NO_TEXT}{number}": number for number in range(last + 1) if number not in taken}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    whole = {
        "version": "1.0",
        "added_tokens": [token.to_json() for token in visible],
        "normalizer": {"type": "NFC"} if normalizes else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "post_processor": None,
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": vocab, "merges": _merges(ranks, written), "ignore_merges": True},
    }
    return read_library_json(json.dumps(whole), path, config, hidden)


def _merges(ranks: Mapping[bytes, int], written: Mapping[bytes, str]) -> Iterable[list[str]]:
    """All pairs that become a token, by its rank."""
    merges = []
    for token in sorted(ranks, key=ranks.__getitem__):
        cuts = ((token[:cut], token[cut:]) for cut in range(1, len(token)))
        pairs = [(ranks[left], ranks[right], left, right) for left, right in cuts if left in ranks and right in ranks]
        merges += [[written[left], written[right]] for *_, left, right in sorted(pairs)]
    return merges
