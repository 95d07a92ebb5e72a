"""``quantization_config`` of config.json: how a quantized Hugging Face checkpoint stores its matrices."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from windlass.models.config import QUANTIZATION_KEY, ConfigReader
from windlass.weights.quantized import WHOLE, Grouping, Storage

_HARMLESS_GROUPS = {
    "who quantized, how, with what": "meta damp_percent damp_auto_increment true_sequential static_groups mse dataset "
    "act_group_aware tokenizer batch_size model_seqlen model_name_or_path model_file_base_name pad_token_id backend "
    "block_name_to_quantize module_name_preceding_first_block modules_in_block_to_quantize cache_block_outputs "
    "quantizer pack_impl",
    "how other engines run it": "use_cuda_fp16 use_exllama disable_exllama exllama_config max_input_length do_fuse "
    "fuse_max_seq_len modules_to_fuse activation_scheme activation_scale_ub dequantize run_compressed",
    "which modules are quantized, which their tensors say": "lm_head modules_to_not_convert modules_to_convert "
    "ignored_layers ignore targets desc_act sym zero_point",
    "notes of compressed-tensors, and what it does to keys and values": "version global_compression_ratio "
    "kv_cache_scheme",
}
_HARMLESS = frozenset(key for keys in _HARMLESS_GROUPS.values() for key in keys.split())

_MOST_GROUPINGS = 32


def read_quantization(config: Mapping[str, Any], path: Path) -> tuple[Grouping, ...] | None:
    """Return how the matrices of a checkpoint may be stored, None when its configuration speaks of no quantization.

    Args:
        config: the object of config.json.
        path: the file it came from.

    Raises:
        LoadError: the method, or something it says, is not supported or not understood.
    """
    section = ConfigReader(config, path).section(QUANTIZATION_KEY)
    if section is None:
        return None
    method = section.choice("quant_method", tuple(_METHODS), default="none")
    groupings = _METHODS[method](section)
    section.finish(ignore=_HARMLESS)
    distinct = tuple(dict.fromkeys(groupings))
    if len(distinct) > _MOST_GROUPINGS:
        raise section.error("quant_method", f"is {method} in {len(distinct)} ways; at most {_MOST_GROUPINGS} are read")
    return distinct


def is_of_family(config: Mapping[str, Any]) -> bool:
    """True when the method is a family's own, whose model file then reads the object, too."""
    section = config.get(QUANTIZATION_KEY)
    return isinstance(section, Mapping) and section.get("quant_method") == "mxfp4"


def _gptq(section: ConfigReader) -> list[Grouping]:
    section.require("is_marlin_format", False, "the layout of Marlin is not supported")
    section.choice("pack_dtype", ("int32",), default="int32")
    section.choice("method", ("gptq",), default="gptq")
    layout = section.choice("format", ("gptq", "gptq_v2"), default="gptq")
    layout = section.choice("checkpoint_format", ("gptq", "gptq_v2"), default=layout)
    bits, size = _bits(section), _group_size(section)
    groupings = [Grouping("gptq", bits, size, less_one=layout == "gptq")]
    dynamic = section.section("dynamic")
    # What GPTQModel quantized otherwise; the keys are regular expressions, and the tensors say what they are.
    special = [] if dynamic is None else [dynamic.section(pattern) for pattern in dynamic.keys]
    for changes in filter(None, special):
        bits_of, size_of = _bits(changes, default=bits), _group_size(changes, default=size)
        groupings.append(Grouping("gptq", bits_of, size_of, less_one=layout == "gptq"))
        changes.finish(ignore=_HARMLESS)
    return groupings


def _awq(section: ConfigReader) -> list[Grouping]:
    bits = _bits(section)
    if bits != 4:
        raise section.error("bits", f"is {bits}; supported for awq: 4")
    layout = str(section.choice("version", ("gemm", "GEMM"), default="gemm"))
    section.choice("format", ("gemm",), default=layout.lower())
    section.choice("checkpoint_format", ("gemm",), default="gemm")
    section.choice("pack_dtype", ("int32",), default="int32")
    return [Grouping("awq", 4, _group_size(section))]


def _fp8(section: ConfigReader) -> list[Grouping]:
    section.choice("fmt", ("e4m3", "float8_e4m3fn"), default="e4m3")
    section.choice("scale_fmt", ("float", "ue8m0"), default="float")
    section.choice("expert_dtype", ("fp8",), default="fp8")
    block = _block(section, "weight_block_size")
    if block is None:
        return [Grouping("fp8", 8, WHOLE, WHOLE, name, False) for name in ("weight_scale", "weight_scale_inv")]
    return [Grouping("fp8", 8, block[1], block[0], "weight_scale_inv", False)]


def _fbgemm_fp8(_: ConfigReader) -> list[Grouping]:
    return [Grouping("fp8", 8, WHOLE, 1, "weight_scale", False)]


_FORMATS = ("pack-quantized", "int-quantized", "naive-quantized", "float-quantized")


def _compressed_tensors(section: ConfigReader) -> list[Grouping]:
    whole = section.choice("format", (*_FORMATS, "mixed-precision"), default="none")
    section.choice("quantization_status", ("compressed", "frozen"), default="compressed")
    sparsity = section.section("sparsity_config")
    if sparsity is not None and sparsity.keys:
        sparsity.choice("format", ("dense",), default="dense")
    transform = section.section("transform_config")
    if transform is not None:
        transform.finish()
    groups = section.section("config_groups")
    if groups is None or not groups.keys:
        raise section.error("config_groups", "is missing or empty")
    groupings = []
    for name in groups.keys:
        group = groups.section(name)
        weights = None if group is None else group.section("weights")
        if group is None or weights is None:
            raise groups.error(name, "has no weights")
        if group.has("output_activations"):
            raise group.error("output_activations", "is there, but outputs are not quantized here; supported: null")
        group.section("input_activations")
        layout = group.choice("format", _FORMATS, default="none" if whole == "mixed-precision" else whole)
        groupings.append(_compressed_weights(weights, layout))
        group.finish(ignore=_HARMLESS)
    return groupings


_OF_WEIGHTS = ("group_size", "block_structure", "actorder", "observer", "observer_kwargs", "scale_dtype", "zp_dtype")
"""Not always read: the first two belong to a strategy, and the tensors tell the rest."""


def _compressed_weights(weights: ConfigReader, layout: str) -> Grouping:
    kind = weights.choice("type", ("int", "float"), default="int")
    bits = _bits(weights, key="num_bits", default=8)
    symmetric = weights.boolean("symmetric", default=True)
    weights.require("dynamic", False, "weights are quantized once")
    sized = weights.has("group_size")
    strategy = weights.choice(
        "strategy", ("tensor", "channel", "group", "block"), default="group" if sized else "tensor"
    )
    size, rows = WHOLE, 1
    if strategy == "group":
        size = _group_size(weights)
    elif strategy == "tensor":
        rows = WHOLE
    elif strategy == "block":
        block = _block(weights, "block_structure")
        if block is None:
            raise weights.error("block_structure", "is missing")
        rows, size = block
    if (kind == "float") != (layout == "float-quantized") and layout != "naive-quantized":
        raise weights.error("type", f"is {kind}, which {layout} cannot be")
    if kind == "float" and (bits != 8 or not symmetric):
        raise weights.error("num_bits", "and symmetric of floats must be 8 and true")
    if kind == "int" and strategy == "block":
        raise weights.error("strategy", "is block; supported for int: tensor, channel, group")
    weights.finish(ignore=_OF_WEIGHTS)
    storage: Storage = "fp8" if kind == "float" else "words" if layout == "pack-quantized" else "bytes"
    return Grouping(storage, 8 if storage == "bytes" else bits, size, rows, "weight_scale", not symmetric)


def _bits(section: ConfigReader, *, key: str = "bits", default: int | None = None) -> int:
    bits = section.integer(key, default=default)
    if bits not in (4, 8):
        raise section.error(key, f"is {bits}; supported: 4, 8")
    return bits


def _group_size(section: ConfigReader, *, default: int | None = None) -> int:
    size = section.integer("group_size", default=default, minimum=WHOLE)
    if size == 0:
        raise section.error("group_size", "is 0, which must be positive, or -1 for whole rows")
    return size


def _block(section: ConfigReader, key: str) -> tuple[int, int] | None:
    sizes = section.numbers(key, 2)
    if sizes is None:
        return None
    if not all(size.is_integer() and size < 1 << 31 for size in map(float, sizes)):
        raise section.error(key, "must be two integers")
    return int(sizes[0]), int(sizes[1])


def _mxfp4(section: ConfigReader) -> list[Grouping]:
    section.require("dequantize", False, "the blocks are computed on as they are")
    return [Grouping("mxfp4", 4, 32, scale="scales", zeros=False)]


_METHODS: dict[str, Callable[[ConfigReader], list[Grouping]]] = {
    "gptq": _gptq,
    "awq": _awq,
    "compressed-tensors": _compressed_tensors,
    "fp8": _fp8,
    "fbgemm_fp8": _fbgemm_fp8,
    "mxfp4": _mxfp4,
}
