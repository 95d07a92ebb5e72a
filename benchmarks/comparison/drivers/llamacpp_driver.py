"""llama.cpp through llama-cpp-python's low-level bindings: its C API, call by call."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import child

_CONTEXT = 4096


class LlamaCpp(child.Driver):
    """Takes the next token as given instead of sampling it, as llama-bench does: sampling is not in its time."""

    def __init__(self, request: dict[str, Any]) -> None:
        import llama_cpp

        self._api: Any = llama_cpp
        llama_cpp.llama_backend_init()
        model_parameters = llama_cpp.llama_model_default_params()
        model_parameters.n_gpu_layers = 0
        self._model = llama_cpp.llama_model_load_from_file(request["model"].encode(), model_parameters)
        if not self._model:
            raise RuntimeError(f"llama.cpp cannot load {request['model']}")
        parameters = llama_cpp.llama_context_default_params()
        parameters.n_seq_max = request["sequences"]
        parameters.n_ctx = _CONTEXT
        parameters.n_batch = 2048
        parameters.n_threads = parameters.n_threads_batch = request["threads"]
        self._context = llama_cpp.llama_init_from_model(self._model, parameters)
        self._memory = llama_cpp.llama_get_memory(self._context)
        self._batch = llama_cpp.llama_batch_init(2048, 0, 1)

    @staticmethod
    def version() -> str:
        import importlib.metadata

        return f"llama-cpp-python {importlib.metadata.version('llama-cpp-python')}"

    def _decode(self, rows: list[tuple[int, int, int, bool]]) -> None:
        """Run (token id, position, sequence, logits wanted) rows through the model, 2048 of them at a time."""
        for begin in range(0, len(rows), 2048):
            part = rows[begin : begin + 2048]
            self._batch.n_tokens = len(part)
            for i, (token, position, sequence, logits) in enumerate(part):
                self._batch.token[i] = token
                self._batch.pos[i] = position
                self._batch.n_seq_id[i] = 1
                self._batch.seq_id[i][0] = sequence
                self._batch.logits[i] = logits
            if self._api.llama_decode(self._context, self._batch) != 0:
                raise RuntimeError("llama_decode failed")
        self._api.llama_synchronize(self._context)

    def generate(self, prompts: list[list[int]], count: int) -> tuple[float, float]:
        self._api.llama_memory_clear(self._memory, True)
        begin = time.perf_counter()
        rows = [
            (token, i, sequence, i == len(prompt) - 1)
            for sequence, prompt in enumerate(prompts)
            for i, token in enumerate(prompt)
        ]
        self._decode(rows)
        first = time.perf_counter()
        for step in range(count - 1):
            self._decode([(1000 + step, len(prompt) + step, i, True) for i, prompt in enumerate(prompts)])
        return first - begin, time.perf_counter() - first

    def first_of_text(self, text: str) -> None:
        encoded = text.encode()
        vocab = self._api.llama_model_get_vocab(self._model)
        ids = (self._api.llama_token * 256)()
        count = self._api.llama_tokenize(vocab, encoded, len(encoded), ids, len(ids), True, False)
        self.generate([ids[:count]], 1)

    def extend(self, prefix: list[int], tail: list[int]) -> float:
        begin = time.perf_counter()
        kept = self._api.llama_memory_seq_pos_max(self._memory, 0) + 1
        if kept <= len(prefix):
            self._api.llama_memory_clear(self._memory, True)
            self._decode([(token, i, 0, False) for i, token in enumerate(prefix)])
        self._api.llama_memory_seq_rm(self._memory, 0, len(prefix), -1)
        last = len(tail) - 1
        self._decode([(token, len(prefix) + i, 0, i == last) for i, token in enumerate(tail)])
        return time.perf_counter() - begin

    @staticmethod
    def prepare(source: str, target: str, options: dict[str, Any]) -> None:
        import llama_cpp

        full = Path(target).with_suffix(".bf16")
        _write_gguf(Path(source), full)
        parameters = llama_cpp.llama_model_quantize_default_params()
        parameters.ftype = options["ftype"]
        parameters.nthread = options["threads"]
        if llama_cpp.llama_model_quantize(str(full).encode(), target.encode(), parameters) != 0:
            raise RuntimeError(f"llama.cpp cannot quantize {full}")
        full.unlink()


def _write_gguf(source: Path, target: Path) -> None:
    """Write a Hugging Face directory of ``comparison.model_files`` as GGUF in bf16."""
    import gguf
    import numpy as np

    config = json.loads((source / "config.json").read_text())
    kind, layers = config["model_type"], config["num_hidden_layers"]
    heads, kv_heads, head = config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"]
    writer = gguf.GGUFWriter(target, kind)
    writer.add_name("random weights")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(layers)
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_dimension_count(head)
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    _add_tokenizer(writer, json.loads((source / "tokenizer.json").read_text(encoding="utf-8")), config)

    architecture = gguf.MODEL_ARCH.QWEN3 if kind == "qwen3" else gguf.MODEL_ARCH.LLAMA
    names = gguf.get_tensor_name_map(architecture, layers)
    weights = source / "model.safetensors"
    with weights.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
    data = np.memmap(weights, dtype=np.uint8, mode="r", offset=8 + size)
    for name, info in header.items():
        if name == "__metadata__":
            continue
        begin, end = info["data_offsets"]
        values = data[begin:end].view(np.uint16).reshape(info["shape"])
        if values.ndim == 1:
            full = (values.astype(np.uint32) << 16).view(np.float32)
            writer.add_tensor(names.get_name(name, (".weight",)), full)
            continue
        if kind == "llama" and (".q_proj." in name or ".k_proj." in name):
            # GGUF's llama rotates neighbours, Hugging Face's halves.
            count = heads if ".q_proj." in name else kv_heads
            values = values.reshape(count, 2, head // 2, -1).swapaxes(1, 2).reshape(info["shape"])
        raw = np.ascontiguousarray(values).view(np.uint8)
        writer.add_tensor(names.get_name(name, (".weight",)), raw, raw_dtype=gguf.GGMLQuantizationType.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_tokenizer(writer: Any, definition: dict[str, Any], config: dict[str, Any]) -> None:
    import gguf

    tokens = dict(definition["model"]["vocab"])
    special = {token["content"]: token["id"] for token in definition["added_tokens"]}
    tokens |= special
    control = set(special.values())
    kinds = [gguf.TokenType.CONTROL if i in control else gguf.TokenType.NORMAL for i in range(len(tokens))]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in definition["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(sorted(tokens, key=lambda token: tokens[token]))
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_add_bos_token(False)


if __name__ == "__main__":
    child.run(LlamaCpp)
