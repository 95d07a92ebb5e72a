"""The tokenizer: a byte-level BPE, trained on the corpus itself.

Two choices make copying and spelling easy for a very small model:

* A space is a token of its own, except before the frequent function words below.  A word therefore has the same
  tokens wherever it stands: after a space, after a quotation mark, after an underscore.  Tokenizers that glue the
  space to the word give it different ones, and copying a name into a tool call becomes translation.
* Digits are single tokens, so a number shows its decimal places.
"""

import random

from chat_format import SPECIAL_TOKENS, TOOL_MARKS, prompt_text, training_spans, training_text
from conversations import Conversation, draw_conversation
from facts import FUNCTION_WORDS
from recipe import BROAD_MIX
from sampling import Draw
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

_PATTERN = "|".join(
    [
        r"'(?:s|t|m|re|ll|d)\b",
        rf" (?:{'|'.join(sorted(set(FUNCTION_WORDS)))})\b",
        r"\p{L}+",
        r"\p{N}",
        r"[^\s\p{L}\p{N}]+",
        r"\n+",
        r"\s",
    ]
)


def train_tokenizer(vocabulary_size: int, conversations: int = 12_000, seed: int = 1) -> Tokenizer:
    """Train on the text of the corpus; the result has exactly `vocabulary_size` tokens."""
    draw = Draw(random.Random(seed))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size - len(TOOL_MARKS),
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = (training_text(draw_conversation(draw, BROAD_MIX)) for _ in range(conversations))
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens([AddedToken(mark, special=False, normalized=False) for mark in TOOL_MARKS])
    if tokenizer.get_vocab_size() != vocabulary_size:
        raise ValueError(f"the corpus gave {tokenizer.get_vocab_size()} tokens instead of {vocabulary_size}")
    return tokenizer


def token_id(tokenizer: Tokenizer, token: str) -> int:
    """The id of a token that has to exist."""
    found = tokenizer.token_to_id(token)
    if found is None:
        raise ValueError(f"the tokenizer has no token {token!r}")
    return found


def letter_pieces(tokenizer: Tokenizer) -> list[str]:
    """The tokens that are plain lower-case letters: what words are made of, and what has to be spelled in training."""
    return sorted(token for token in tokenizer.get_vocab() if token.isascii() and token.isalpha() and token.islower())


def encode_training(tokenizer: Tokenizer, conversation: Conversation) -> tuple[list[int], list[bool]]:
    """Token ids, and for each whether the model learns to write it."""
    ids: list[int] = []
    is_target: list[bool] = []
    for text, learned in training_spans(conversation):
        piece = tokenizer.encode(text).ids
        ids += piece
        is_target += [learned] * len(piece)
    return ids, is_target


def encode_prompt(tokenizer: Tokenizer, conversation: Conversation) -> list[int]:
    """Token ids of the text after which the model answers."""
    return tokenizer.encode(prompt_text(conversation)).ids
