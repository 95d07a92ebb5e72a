"""Compute what tokenizers of every kind of file must answer, with the libraries that such files are made for.

    python tools/make_tokenizer_goldens.py    write tests/conformance/goldens/tokenizers

Needs sentencepiece, protobuf, tiktoken, tokenizers and transformers, and $WINDLASS_TEST_DATA. Each golden holds the
files of a small tokenizer, and texts with their ids; of SentencePiece also what the ids decode to.
"""

from __future__ import annotations

import base64
import io
import json
import os
import random
import sys
import tempfile
import unicodedata
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import sentencepiece
import tiktoken
import transformers
from sentencepiece import sentencepiece_model_pb2
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

from windlass.text.byte_decoding import byte_level_alphabet  # noqa: E402

GOLDENS = ROOT / "tests" / "conformance" / "goldens" / "tokenizers"
CORPUS = (Path(os.environ["WINDLASS_TEST_DATA"]) / "text" / "tinyshakespeare.txt").read_text()[:120_000]
LINES = [line for line in CORPUS.splitlines() if line]
FOREIGN = ["naïve café Größe", "東京都に行く", "привет, мир", "🦊 fox 🦊", "١٢٣ 1234 12,5", "fiancée ﬁne Ｗide"]

WORDS = [
    *(
        "the",
        " The",
        "  king",
        " ",
        "  ",
        "   ",
        "\n",
        "\n\n",
        "\t",
        "\r\n",
        "don't",
        "WE'LL",
        "1234567",
        "3.14",
        "é",
        "e\u0301",
    ),
    *(
        "▁",
        "▁▁",
        "ﬁ",
        "Ａ",
        "\u200b",
        "\u00a0",
        "\u3000",
        "東京",
        "🦊",
        "\x00",
        "<s>",
        "</s>",
        "<unk>",
        "<0x41>",
        "<|user|>",
    ),
    *(
        "<|ctl|>",
        "!?",
        "...",
        "zzqq",
        "Rome,",
        " citizens",
        "[INST]",
        "привет",
        "ſ",
        "a",
        "b",
        "##s",
        "[CLS]",
        "\u0301",
        "Ä",
    ),
]
RULES = {
    "ﬁ": "fi",
    "Ａ": "A",
    "Ｗ": "W",
    "e\u0301": "é",
    "\u200b": "",
    "\u3000": " ",
    "\u00a0": " ",
    "\t": " ",
    "Ä": "ae",
}

LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
QWEN = LLAMA_3.replace("{1,3}", "")
HAN = r"&&[^\p{Han}]"
KIMI = (
    r"[\p{Han}]+"
    rf"|[^\r\n\p{{L}}\p{{N}}]?[\p{{Lu}}\p{{Lt}}\p{{Lm}}\p{{Lo}}\p{{M}}{HAN}]*[\p{{Ll}}\p{{Lm}}\p{{Lo}}\p{{M}}{HAN}]+"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    rf"|[^\r\n\p{{L}}\p{{N}}]?[\p{{Lu}}\p{{Lt}}\p{{Lm}}\p{{Lo}}\p{{M}}{HAN}]+[\p{{Ll}}\p{{Lm}}\p{{Lo}}\p{{M}}{HAN}]*"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def texts() -> list[str]:
    """Lines as they are, and words in any order."""
    draw = random.Random(5)
    mixed = ["".join(draw.choices(WORDS, k=draw.randrange(1, 12))) for _ in range(60)]
    return ["", *draw.sample(LINES, 12), *FOREIGN, *WORDS, *mixed]


def write(name: str, files: dict[str, str | bytes], answers: list[Any], source: str) -> None:
    """Write one golden."""
    packed = {
        file: content if isinstance(content, str) else {"base64": base64.b64encode(content).decode()}
        for file, content in files.items()
    }
    golden = {"source": f"{source} {version(source)}", "files": packed, "cases": answers}
    (GOLDENS / f"{name}.json").write_text(json.dumps(golden, ensure_ascii=True, indent=None) + "\n")


def sentencepiece_case(name: str, change: Callable[[Any], None] | None = None, **options: Any) -> None:
    """A model trained on plain text."""
    out = io.BytesIO()
    with tempfile.TemporaryDirectory() as at:
        rules = Path(at) / "rules.tsv"
        if options.pop("rules", False):
            lines = (
                " ".join(f"{ord(c):X}" for c in old) + "\t" + " ".join(f"{ord(c):X}" for c in new)
                for old, new in RULES.items()
            )
            rules.write_text("\n".join(lines) + "\n")
            options["normalization_rule_tsv"] = str(rules)
        else:
            options["normalization_rule_name"] = "identity"
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter([*LINES, *FOREIGN * 20]), model_writer=out, minloglevel=2, **options
        )
    data = out.getvalue()
    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(data)
    proto.trainer_spec.ClearField("input")
    if change is not None:
        change(proto)
    data = proto.SerializeToString()
    processor = sentencepiece.SentencePieceProcessor(model_proto=data)
    answers = [(text, ids := processor.encode(text), processor.decode(ids)) for text in texts()]
    write(
        name,
        {"tokenizer.model": data, "tokenizer_config.json": json.dumps({"legacy": False})},
        answers,
        "sentencepiece",
    )


def leave_unused(proto: Any) -> None:
    """Every fifth piece that is merged from others is not to be used."""
    normal = [piece for piece in proto.pieces if piece.type == piece.NORMAL and len(piece.piece) > 1]
    for piece in normal[::5]:
        piece.type = piece.UNUSED


def ranks(pattern: str, size: int) -> dict[bytes, int]:
    """Byte strings by rank; some of them are whole words that no merges lead to."""
    library = Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=size, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    library.train_from_iterator([*LINES, *FOREIGN * 20], trainer)
    letters = byte_level_alphabet()
    vocab = sorted(library.get_vocab().items(), key=lambda item: item[1])
    tokens = [bytes(letters[letter] for letter in entry) for entry, _ in vocab]
    singles = [token for token in tokens if len(token) == 1]
    longer = [token for token in tokens if len(token) > 1]
    return {token: rank for rank, token in enumerate([*singles, *longer, b"zzqq", "東京".encode(), b" citizens!"])}


def tiktoken_case(name: str, file: str, pattern: str, config: dict[str, Any], *, normalizes: bool = False) -> None:
    """A list of ranks in the file of a known model."""
    table = ranks(pattern, 500)
    encoding = tiktoken.Encoding(name, pat_str=pattern, mergeable_ranks=table, special_tokens={})
    content = "".join(f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in table.items())

    def answer(text: str) -> list[int]:
        return encoding.encode_ordinary(unicodedata.normalize("NFC", text) if normalizes else text)

    write(
        name,
        {file: content, "tokenizer_config.json": json.dumps(config)},
        [(t, answer(t)) for t in texts()],
        "tiktoken",
    )


def tekken_case() -> None:
    """Mistral's file; the vocabulary is cut, and named special tokens leave room for others."""
    table = ranks(TEKKEN, 500)
    vocab = [
        {"rank": rank, "token_bytes": base64.b64encode(token).decode(), "token_str": token.decode(errors="replace")}
        for token, rank in table.items()
    ]
    specials = [
        {"rank": rank, "token_str": text, "is_control": True}
        for rank, text in enumerate(["<unk>", "<s>", "</s>", "[INST]"])
    ]
    size, num_specials = 480, 10
    whole = {
        "config": {
            "pattern": TEKKEN,
            "num_vocab_tokens": len(vocab),
            "default_vocab_size": size,
            "default_num_special_tokens": num_specials,
            "version": "v7",
        },
        "vocab": vocab,
        "special_tokens": specials,
    }
    kept = {token: rank for token, rank in table.items() if rank < size - num_specials}
    encoding = tiktoken.Encoding("tekken", pat_str=TEKKEN, mergeable_ranks=kept, special_tokens={})
    answers = [(text, [num_specials + rank for rank in encoding.encode_ordinary(text)]) for text in texts()]
    write("tekken", {"tekken.json": json.dumps(whole)}, answers, "tiktoken")


def transformers_case(name: str, kind: str, files: dict[str, str], config: dict[str, Any]) -> None:
    """Vocabulary files as transformers reads them."""
    with tempfile.TemporaryDirectory() as at:
        for file, content in files.items():
            (Path(at) / file).write_text(content)
        vocabulary = [str(Path(at) / file) for file in files]
        names = {"vocab.json": "vocab", "merges.txt": "merges", "vocab.txt": "vocab"}
        arguments = {names[Path(path).name]: path for path in vocabulary}
        tokenizer = getattr(transformers, kind)(
            **arguments, **{k: v for k, v in config.items() if k != "tokenizer_class"}
        )
        backend = tokenizer.backend_tokenizer
        backend.encode_special_tokens = True
        answers = [(text, backend.encode(text, add_special_tokens=False).ids) for text in texts()]
    write(name, {**files, "tokenizer_config.json": json.dumps(config)}, answers, "transformers")


def bpe_files(pattern: str | None) -> dict[str, str]:
    library = Tokenizer(models.BPE())
    steps: list[Any] = [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None)]
    if pattern is not None:
        steps.insert(0, pre_tokenizers.Split(Regex(pattern), "isolated"))
    library.pre_tokenizer = pre_tokenizers.Sequence(steps)
    trainer = trainers.BpeTrainer(
        vocab_size=450, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    library.train_from_iterator([*LINES, *FOREIGN * 20], trainer)
    whole = json.loads(library.to_str())["model"]
    merges = "#version: 0.2\n" + "".join(f"{' '.join(merge)}\n" for merge in whole["merges"])
    return {"vocab.json": json.dumps({**whole["vocab"], "<|endoftext|>": len(whole["vocab"])}), "merges.txt": merges}


def word_piece_files(*, lowercase: bool) -> dict[str, str]:
    words: Sequence[str] = sorted({word for line in LINES[:400] for word in line.lower().split() if word.isalpha()})[
        :150
    ]
    letters = sorted(
        {
            letter
            for line in [*LINES, *FOREIGN]
            for letter in (line.lower() if lowercase else line)
            if not letter.isspace()
        }
    )
    entries = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    entries += [word for word in words if word not in letters]
    return {"vocab.txt": "".join(f"{entry}\n" for entry in entries)}


def main() -> None:
    """Write all goldens."""
    GOLDENS.mkdir(parents=True, exist_ok=True)
    common: dict[str, Any] = {"vocab_size": 420, "character_coverage": 1.0}
    bpe: dict[str, Any] = {
        **common,
        "vocab_size": 600,
        "character_coverage": 0.98,
        "model_type": "bpe",
        "byte_fallback": True,
        "split_digits": True,
        "remove_extra_whitespaces": False,
        "user_defined_symbols": ["<|user|>", "\n\n", "▁▁"],
        "control_symbols": ["<|ctl|>"],
    }
    sentencepiece_case("sentencepiece-bpe", **bpe)
    sentencepiece_case("sentencepiece-bpe-unused", leave_unused, **bpe)
    sentencepiece_case(
        "sentencepiece-bpe-suffix",
        **common,
        model_type="bpe",
        treat_whitespace_as_suffix=True,
        rules=True,
        allow_whitespace_only_pieces=True,
    )
    sentencepiece_case("sentencepiece-bpe-no-prefix", **common, model_type="bpe", add_dummy_prefix=False)
    sentencepiece_case(
        "sentencepiece-unigram",
        **common,
        model_type="unigram",
        rules=True,
        user_defined_symbols=["<|user|>", "ﬁ"],
        control_symbols=["<|ctl|>"],
    )
    sentencepiece_case(
        "sentencepiece-unigram-bytes",
        leave_unused,
        **{**common, "vocab_size": 600, "character_coverage": 0.98},
        model_type="unigram",
        byte_fallback=True,
        remove_extra_whitespaces=False,
    )
    tiktoken_case("tiktoken-qwen", "qwen.tiktoken", QWEN, {"tokenizer_class": "QWenTokenizer"}, normalizes=True)
    tiktoken_case("tiktoken-glm", "tokenizer.model", LLAMA_3, {"tokenizer_class": "ChatGLM4Tokenizer"})
    tiktoken_case("tiktoken-kimi", "tiktoken.model", KIMI, {"tokenizer_class": "TikTokenTokenizer"})
    tekken_case()
    transformers_case("gpt2-files", "GPT2Tokenizer", bpe_files(None), {"tokenizer_class": "GPT2Tokenizer"})
    transformers_case("qwen2-files", "Qwen2Tokenizer", bpe_files(QWEN), {"tokenizer_class": "Qwen2Tokenizer"})
    uncased, cased = {"tokenizer_class": "BertTokenizer"}, {"tokenizer_class": "BertTokenizer", "do_lower_case": False}
    transformers_case("bert-uncased", "BertTokenizer", word_piece_files(lowercase=True), uncased)
    transformers_case("bert-cased", "BertTokenizer", word_piece_files(lowercase=False), cased)


if __name__ == "__main__":
    main()
