"""The text side of a loaded model: everything between the callers' text and the engine's token ids."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from windlass.errors import InvalidRequestError
from windlass.text.byte_decoding import ByteDecoding
from windlass.text.chat_template import ChatTemplate, Findings, gguf_chat_template, read_chat_template
from windlass.text.detokenizer import IncrementalDetokenizer
from windlass.text.generation import GenerationDefaults, read_generation_defaults
from windlass.text.gguf_token_ids import read_stop_ids
from windlass.text.prompt_template import PromptTemplate
from windlass.text.text_pack import TextCache, TextPack
from windlass.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from windlass.text.answer_events import Parser

# How many bytes normalization may make one of.
_MOST_SHRINKING = 4

# Tokens at the end of a prompt that may hold an open <think>, which most vocabularies have as one token.
_TAIL = 8


class PlaceholderTokenizer:
    """Stands in where a model directory has no tokenizer: token 123 reads ``<123>``, and no text can be encoded."""

    vocab_size = None
    longest_entry = 1
    eos_id = None
    decoding = ByteDecoding()
    around: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())

    def encode(self, text: str, *, bos: bool = False) -> list[int]:  # noqa: ARG002  (the face of Tokenizer)
        """Raises InvalidRequestError."""
        raise InvalidRequestError("this model was loaded without a tokenizer: the prompt must be token ids")

    def decode(self, ids: Iterable[int]) -> str:
        """The ids as text."""
        return "".join(f"<{token_id}>" for token_id in ids)

    def text_bytes(self, token_id: int, *, first: bool = False) -> bytes:  # noqa: ARG002  (the face of Tokenizer)
        """The id as text."""
        return b"<%d>" % token_id

    def token_bytes(self, token_id: int) -> bytes:
        """The id as text."""
        return self.text_bytes(token_id)

    def added_token_id(self, text: str) -> int | None:  # noqa: ARG002  (the face of Tokenizer)
        """None: nothing is known of the tokens."""
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class TextModel:
    """Tokenizer, template and defaults of one model. Immutable, safe to use from many threads.

    Attributes:
        tokenizer: the model's, or a placeholder.
        template: the chat template, or None when the model has none.
        tools_template: the template for conversations with tools, where it is another one: an MLC conversation template
            often has no place for tools, while the model's own chat template beside it has.
        defaults: sampling defaults; None where the model's files say nothing.
        stop_token_ids: all tokens that end an answer: the end ids of the files and the template's end of turn.
        stop_strings: texts that end an answer, for templates whose end of turn is no token.
        prompts_begin_with_bos: text completions get the tokenizer's own BOS.
        marks: special tokens of the format of answers (harmony), and what its parser takes them as.
    """

    tokenizer: Tokenizer | PlaceholderTokenizer
    template: PromptTemplate | None
    tools_template: PromptTemplate | None
    defaults: GenerationDefaults
    stop_token_ids: frozenset[int]
    stop_strings: tuple[str, ...]
    prompts_begin_with_bos: bool
    marks: Mapping[int, str]

    @classmethod
    def load(
        cls,
        directory: Path,
        config: Mapping[str, Any],
        mlc_config: Mapping[str, Any] | None,
        *,
        dummy: bool = False,
        cache: TextCache | None = None,
    ) -> TextModel:
        """The text side of a model directory.

        Args:
            directory: the model directory.
            config: the architecture's config.json.
            mlc_config: the mlc-chat-config.json of an MLC directory, else None.
            dummy: a directory without tokenizer files gets a placeholder.
            cache: where what takes long to make is looked for and kept.

        Raises:
            LoadError: a file is missing, broken, or says what this engine does not know.
        """
        tokenizer: Tokenizer | PlaceholderTokenizer
        template: PromptTemplate | None = None
        tools_template: PromptTemplate | None = None
        if dummy and not Tokenizer.is_in(directory):
            tokenizer = PlaceholderTokenizer()
        else:
            pack = TextPack.open(directory, cache)
            tokenizer = pack.tokenizer
            template = load_prompt_template(directory, mlc_config, tokenizer, pack.findings)
            if template is not None and not isinstance(template, ChatTemplate) and not template.supports_tools:
                tools_template = read_chat_template(directory, tokenizer, pack.findings)
            made = next((one for one in (template, tools_template) if isinstance(one, ChatTemplate)), None)
            pack.keep(None if made is None else made.findings)
            tokenizer = pack.tokenizer
        defaults = read_generation_defaults(directory, config, mlc_config, tokenizer.eos_id)
        marks, ends = _harmony_marks(template, tokenizer)
        return cls(
            tokenizer=tokenizer,
            template=template,
            tools_template=tools_template,
            defaults=defaults,
            stop_token_ids=defaults.stop_token_ids.union(template.stop_token_ids if template else (), ends),
            stop_strings=template.stop_strings if template else (),
            prompts_begin_with_bos=mlc_config is None,
            marks=marks,
        )

    @classmethod
    def from_gguf(cls, path: Path, metadata: Mapping[str, Any], cache: TextCache | None = None) -> TextModel:
        """The text side of the GGUF file ``path``.

        Args:
            path: the file.
            metadata: what it says of itself.
            cache: where what takes long to make is looked for and kept.

        Raises:
            LoadError: it has no tokenizer, or something that this engine does not know.
        """
        pack = TextPack.open_gguf(path, metadata, cache)
        template = gguf_chat_template(metadata, pack.tokenizer, path, pack.findings)
        pack.keep(None if template is None else template.findings)
        tokenizer = pack.tokenizer
        stop_ids = read_stop_ids(path, metadata, tokenizer.vocab_size)
        marks, ends = _harmony_marks(template, tokenizer)
        return cls(
            tokenizer=tokenizer,
            template=template,
            tools_template=None,
            defaults=GenerationDefaults(stop_token_ids=stop_ids),
            stop_token_ids=stop_ids.union(template.stop_token_ids if template else (), ends),
            stop_strings=template.stop_strings if template else (),
            prompts_begin_with_bos=True,
            marks=marks,
        )

    @property
    def vocab_size(self) -> int | None:
        """One more than the largest id of the tokenizer; None with a placeholder."""
        return self.tokenizer.vocab_size

    def cannot_fit(self, num_bytes: int, num_tokens: int) -> bool:
        """Whether a text of so many bytes of UTF-8 is too long for so many tokens, whatever it says.

        An encoder can take seconds for a text of megabytes, of which a context would hold a small part.
        """
        if num_bytes <= num_tokens * _MOST_SHRINKING:
            return False
        return num_bytes > num_tokens * _MOST_SHRINKING * self.tokenizer.longest_entry

    def encode_prompt(self, text: str, *, bos: bool | None = None) -> list[int]:
        """Token ids of a text to continue.

        Args:
            bos: begin with the tokenizer's own BOS, if it has one; None does as ``prompts_begin_with_bos`` says.

        Raises:
            InvalidRequestError: the text cannot be encoded.
        """
        return self.tokenizer.encode(text, bos=self.prompts_begin_with_bos if bos is None else bos)

    def encode_whole(self, text: str) -> list[int]:
        """Token ids of a text with what the tokenizer itself puts around it, as models for embeddings are fed.

        Raises:
            InvalidRequestError: the text cannot be encoded.
        """
        before, after = self.tokenizer.around
        return [*before, *self.tokenizer.encode(text), *after]

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """Token ids of a conversation, ready for the assistant's answer.

        Raises:
            InvalidRequestError: the model has no chat template, or its template refuses the conversation.
        """
        tokenizer, template = self._chat_parts(tools)
        return template.encode(tokenizer, messages, tools=tools, template_kwargs=template_kwargs)

    def write_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> str:
        """A conversation as the text that ``encode_chat`` tokenizes.

        Raises:
            InvalidRequestError: as ``encode_chat``.
        """
        tokenizer, template = self._chat_parts(tools)
        return template.write(tokenizer, messages, tools=tools, template_kwargs=template_kwargs)

    def effort_arguments(self, effort: str) -> dict[str, Any]:
        """The template arguments for a ``reasoning_effort``; none when the template knows nothing of it."""
        return self.template.effort_arguments(effort) if self.template is not None else {}

    def _chat_parts(self, tools: Sequence[Mapping[str, Any]] | None) -> tuple[Tokenizer, PromptTemplate]:
        """Return what makes prompts of conversations, or raise why nothing does."""
        if isinstance(self.tokenizer, PlaceholderTokenizer):
            raise InvalidRequestError(
                "this model was loaded without a tokenizer: use text completions with token ids", param="messages"
            )
        if self.template is None:
            raise InvalidRequestError("the model has no chat template; use text completions", param="messages")
        with_tools = self.tools_template if tools and self.tools_template is not None else self.template
        return self.tokenizer, with_tools

    def answer_parser(self, prompt_ids: Sequence[int], *, tools: bool, parallel_tool_calls: bool) -> Parser:
        """A new parser for one answer to a conversation that ends with ``prompt_ids``."""
        if self.marks:
            from windlass.text.harmony import HarmonyParser  # for these models only

            return HarmonyParser(tools=tools, parallel_tool_calls=parallel_tool_calls)
        from windlass.text.answer import AnswerParser, ends_in_reasoning  # for chat only

        thinks = self.template is not None and self.template.thinks
        tail = b"".join(self.token_bytes(token_id) for token_id in prompt_ids[-_TAIL:]).decode(errors="replace")
        return AnswerParser(
            tools=tools,
            reasoning=thinks,
            starts_in_reasoning=thinks and ends_in_reasoning(tail),
            parallel_tool_calls=parallel_tool_calls,
        )

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ``ids`` without special tokens."""
        return self.tokenizer.decode(ids)

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes of one token, for people who look at single tokens; of a special token those of its name."""
        return self.tokenizer.token_bytes(token_id)

    def detokenizer(self, prompt_ids: Sequence[int] = ()) -> IncrementalDetokenizer:
        """A new detokenizer for one stream; for text completions give it the prompt's ids, for chat none.

        For chat it shows the marks that ``answer_parser`` goes by, where these are special tokens.
        """
        return IncrementalDetokenizer(self.tokenizer, prompt_ids, {} if prompt_ids else self.marks)

    def stop_ids_of(self, stops: Iterable[str]) -> frozenset[int]:
        """The ids of those stop strings that are single special tokens; such tokens never show in the text."""
        ids = (self.tokenizer.added_token_id(text) for text in stops)
        return frozenset(token_id for token_id in ids if token_id is not None)


def _harmony_marks(
    template: PromptTemplate | None, tokenizer: Tokenizer | PlaceholderTokenizer
) -> tuple[dict[int, str], list[int]]:
    """The marks of harmony by their ids, and the ids that end an answer; none for a template of another format."""
    if not isinstance(template, ChatTemplate) or not template.is_harmony:
        return {}, []
    from windlass.text.harmony import ENDS, MARKS  # for these models only

    ids = {name: token_id for name in MARKS if (token_id := tokenizer.added_token_id(name)) is not None}
    return {token_id: MARKS[name] for name, token_id in ids.items()}, [ids[name] for name in ENDS if name in ids]


def load_prompt_template(
    directory: Path, mlc_config: Mapping[str, Any] | None, tokenizer: Tokenizer, findings: Findings | None = None
) -> PromptTemplate | None:
    """The ``conv_template`` of an MLC directory, else the chat template of Hugging Face files, else None.

    Raises:
        LoadError: the template is not valid.
    """
    conversation = (mlc_config or {}).get("conv_template")
    if conversation is not None:
        from windlass.text.conv_template import ConversationTemplate  # for MLC directories only

        path = directory / "mlc-chat-config.json"
        return ConversationTemplate.from_json(conversation, path=path, tokenizer=tokenizer)
    return read_chat_template(directory, tokenizer, findings)
