"""Speed of the native executor on a Llama-shaped model with random weights: decode and prefill per kernel table.

    python benchmarks/kernels.py --format int4 --threads 1 2 --context 128 --prefill 512

Prints a table, with the shares of the machine's limits measured in the same run (memory read for decoding, int8 dot
products for prefill), and with ``--json`` writes the same figures. Asserts nothing.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from comparison.limits import build_limits, measure_limits
from windlass.native import NativeExecutor, cpu_info
from windlass.program.builder import ProgramBuilder
from windlass.program.executor import PAGE_SIZE, Batch
from windlass.program.program import Program
from windlass.quantization import Format, Tensor, f32_to_bf16


@dataclass(frozen=True)
class Shape:
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int
    experts: int = 1  # each of them with ``ffn``
    top_k: int = 1

    @property
    def layer_weights(self) -> int:
        """Weights of the linear layers that a token meets, without embedding and head."""
        attention = self.hidden * self.head_dim * 2 * (self.heads + self.kv_heads)
        return self.layers * (attention + self.top_k * 3 * self.hidden * self.ffn)

    @property
    def idle_weights(self) -> int:
        """Weights of the experts that a token does not meet."""
        return self.layers * (self.experts - self.top_k) * 3 * self.hidden * self.ffn


SHAPES = {
    "llama-1b": Shape(hidden=2048, layers=16, heads=32, kv_heads=8, head_dim=64, ffn=8192, vocab=128256),
    "qwen-0.5b": Shape(hidden=896, layers=24, heads=14, kv_heads=2, head_dim=64, ffn=4864, vocab=151936),
    "experts": Shape(
        hidden=2048, layers=4, heads=32, kv_heads=4, head_dim=64, ffn=768, vocab=32000, experts=128, top_k=8
    ),
    "tiny": Shape(hidden=256, layers=4, heads=8, kv_heads=4, head_dim=32, ffn=512, vocab=1024),
}


@dataclass(frozen=True)
class Row:
    kernels: str
    threads: int
    load_seconds: float
    decode_tokens_per_second: float
    decode_gigabytes_per_second: float
    decode_share_of_read: float
    batched_tokens_per_second: float
    prefill_tokens_per_second: float
    prefill_gigaops: float
    prefill_share_of_int8: float


@dataclass(frozen=True)
class PlainRope:
    head_dim: int
    theta: float = 500000.0

    def cos_sin(self, positions: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        frequencies = self.theta ** -(np.arange(0, self.head_dim, 2) / self.head_dim)
        angles = np.arange(positions)[:, None] * frequencies
        return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def make_program(shape: Shape) -> Program:
    builder = ProgramBuilder(
        num_layers=shape.layers, num_kv_heads=shape.kv_heads, head_dim=shape.head_dim, vocab_size=shape.vocab
    )
    rope = builder.rope_table(PlainRope(shape.head_dim))
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    x = builder.embed("embed", shape.hidden)
    for i in range(shape.layers):
        qkv = builder.linear(builder.rms_norm(x, f"{i}.norm1", 1e-5), f"{i}.qkv", queries + 2 * keys)
        q, k, v = qkv.columns(0, queries), qkv.columns(queries, keys), qkv.columns(queries + keys, keys)
        builder.rope(q, rope)
        builder.rope(k, rope)
        builder.write_kv(i, k, v)
        builder.add(x, builder.linear(builder.attention(q, i, num_heads=shape.heads), f"{i}.o", shape.hidden))
        normed = builder.rms_norm(x, f"{i}.norm2", 1e-5)
        if shape.experts > 1:
            logits = builder.linear(normed, f"{i}.router", shape.experts, role="router")
            shares = builder.route(logits, top_k=shape.top_k, scores="softmax", normalize=True)
            names = {"gate_up": f"{i}.gate_up", "down": f"{i}.down"}
            builder.add(x, builder.experts(normed, shares, **names, intermediate_size=shape.ffn))
            continue
        gated = builder.gated_activation(builder.linear(normed, f"{i}.gate_up", 2 * shape.ffn))
        builder.add(x, builder.linear(gated, f"{i}.down", shape.hidden))
    builder.logits(builder.rms_norm(x, "norm", 1e-5), "embed")
    return builder.build()


def random_weights(program: Program, kind: Format, group: int) -> Iterator[tuple[str, Tensor]]:
    rng = np.random.default_rng(0)
    for spec in program.weights:
        if len(spec.shape) == 1:
            yield spec.name, Tensor(Format.F32, spec.shape, np.ones(spec.shape, dtype=np.float32))
            continue
        rows, columns = spec.shape
        deviation = columns**-0.5
        if spec.role == "router" or not kind.grouped:
            values = rng.standard_normal(spec.shape, dtype=np.float32) * np.float32(deviation)
            data = {Format.F32: lambda v: v, Format.F16: lambda v: v.astype(np.float16), Format.BF16: f32_to_bf16}
            own = Format.F32 if kind.grouped else kind
            yield spec.name, Tensor(own, spec.shape, data[own](values))
            continue
        groups = -(-columns // group)
        if kind is Format.INT4:
            codes = np.frombuffer(rng.bytes(rows * ((columns + 1) // 2)), dtype=np.uint8).reshape(rows, -1)
            zeros = np.broadcast_to(np.uint8(7), (rows, groups))
            scales = np.full((rows, groups), deviation / 4.6, dtype=np.float16)
            yield spec.name, Tensor(kind, spec.shape, codes, group, scales, zeros)
        else:
            signed = np.frombuffer(rng.bytes(rows * columns), dtype=np.int8).reshape(rows, columns)
            scales = np.full((rows, groups), deviation / 74, dtype=np.float16)
            yield spec.name, Tensor(kind, spec.shape, signed, group, scales)


def int32(*values: int) -> NDArray[np.int32]:
    return np.array(values, dtype=np.int32)


def make_batch(starts: list[int], tokens: int, pages_per_sequence: int, vocab: int) -> Batch:
    """``tokens`` tokens of each of several sequences that begin at ``starts``; logits of each one's last token."""
    sequences = len(starts)
    positions = np.concatenate([np.arange(start, start + tokens) for start in starts]).astype(np.int32)
    return Batch(
        token_ids=(positions * 7919 % vocab).astype(np.int32),
        positions=positions,
        token_starts=np.arange(0, sequences * tokens + 1, tokens, dtype=np.int32),
        page_ids=np.arange(sequences * pages_per_sequence, dtype=np.int32),
        page_starts=np.arange(0, sequences * pages_per_sequence + 1, pages_per_sequence, dtype=np.int32),
        logit_rows=np.arange(tokens - 1, sequences * tokens, tokens, dtype=np.int32),
    )


def decode_seconds(
    executor: NativeExecutor, shape: Shape, context: int, sequences: int, steps: int, max_tokens: int
) -> float:
    """Median seconds of one decode step after a prefill of ``context`` tokens of each sequence."""
    pages = (context + steps) // PAGE_SIZE + 1
    # Pages that nobody wrote would all be the system's one page of zeros, and so be read from the processor's cache.
    chunk = max_tokens // sequences
    for start in range(0, context, chunk):
        executor.run(make_batch([start] * sequences, min(chunk, context - start), pages, shape.vocab))
    times = []
    for step in range(steps):
        batch = make_batch([context + step] * sequences, 1, pages, shape.vocab)
        begin = time.perf_counter()
        executor.run(batch)
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def measure(shape: Shape, arguments: argparse.Namespace, kernels: str, threads: int) -> Row:
    program = make_program(shape)
    longest = max(arguments.prefill, arguments.context + arguments.steps)
    pages = (longest // PAGE_SIZE + 1) * arguments.sequences
    max_tokens = max(arguments.prefill, arguments.sequences)
    begin = time.perf_counter()
    executor = NativeExecutor(
        program,
        random_weights(program, Format(arguments.format), arguments.group),
        num_pages=pages,
        max_tokens=max_tokens,
        max_positions=longest + 1,
        num_threads=threads,
        kv_dtype=arguments.kv_dtype,
        kernels=kernels,
    )
    load = time.perf_counter() - begin
    try:
        prefill = make_batch([0], arguments.prefill, longest // PAGE_SIZE + 1, shape.vocab)
        times = []
        for _ in range(arguments.repeat):
            begin = time.perf_counter()
            executor.run(prefill)
            times.append(time.perf_counter() - begin)
        limits = measure_limits(build_limits(Path(tempfile.gettempdir()) / "windlass-limits"), threads)
        one = decode_seconds(executor, shape, arguments.context, 1, arguments.steps, max_tokens)
        many = decode_seconds(executor, shape, arguments.context, arguments.sequences, arguments.steps, max_tokens)
        idle = shape.idle_weights / sum(math.prod(spec.shape) for spec in program.weights)
        decode_bytes = executor.weight_bytes * (1 - idle) / one / 1e9
        gigaops = 2 * shape.layer_weights * arguments.prefill / min(times) / 1e9
        return Row(
            kernels=kernels,
            threads=threads,
            load_seconds=load,
            decode_tokens_per_second=1 / one,
            decode_gigabytes_per_second=decode_bytes,
            decode_share_of_read=decode_bytes / limits["read_N"][0],
            batched_tokens_per_second=arguments.sequences / many,
            prefill_tokens_per_second=arguments.prefill / min(times),
            prefill_gigaops=gigaops,
            prefill_share_of_int8=gigaops / limits["int8_N"][0],
        )
    finally:
        executor.close()


def main() -> None:
    info = cpu_info()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="llama-1b")
    parser.add_argument("--format", choices=[kind.value for kind in Format], default="int4")
    parser.add_argument("--group", type=int, default=32)
    parser.add_argument("--kv-dtype", choices=["f32", "f16", "bf16", "int16", "int8"], default="f16")
    parser.add_argument("--kernels", nargs="+", choices=info.kernels, default=list(reversed(info.kernels)))
    parser.add_argument("--threads", nargs="+", type=int, default=[info.default_threads])
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--sequences", type=int, default=8, help="sequences decoded together in the batched column")
    parser.add_argument("--prefill", type=int, default=512)
    parser.add_argument("--repeat", type=int, default=2, help="prefill runs, of which the best counts")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()

    print(f"{arguments.shape} {arguments.format}, group {arguments.group}, KV {arguments.kv_dtype}")
    print(f"decode at context {arguments.context}, prefill of {arguments.prefill} tokens; tokens per second")
    together = f"decode x{arguments.sequences}"
    print(
        f"{'kernels':12} {'threads':>7} {'load s':>7} {'decode':>8} {'GB/s':>6} {'of read':>7} {together:>10} "
        f"{'prefill':>8} {'GOP/s':>6} {'of int8':>7}"
    )
    rows = []
    for kernels in arguments.kernels:
        for threads in arguments.threads:
            row = measure(SHAPES[arguments.shape], arguments, kernels, threads)
            rows.append(row)
            print(
                f"{row.kernels:12} {row.threads:7} {row.load_seconds:7.2f} {row.decode_tokens_per_second:8.2f} "
                f"{row.decode_gigabytes_per_second:6.2f} {row.decode_share_of_read:7.0%} "
                f"{row.batched_tokens_per_second:10.2f} {row.prefill_tokens_per_second:8.2f} "
                f"{row.prefill_gigaops:6.0f} {row.prefill_share_of_int8:7.0%}",
                flush=True,
            )
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")


if __name__ == "__main__":
    main()
