"""Have the tools that make quantized checkpoints pack small random matrices, and keep what they store and mean.

    python tools/make_quantized_goldens.py PACKAGES    write tests/conformance/goldens/quantized.npz

Needs the ``oracle`` extra (torch and transformers), and the unpacked packages auto-gptq 0.7.1, autoawq 0.2.9 and
compressed-tensors 0.20.0, with loguru, in the directory PACKAGES (``pip install --no-deps --target PACKAGES``, or an
unpacked source distribution). Of them only the parts that put tensors together and take them apart are run, on the
CPU. For each case the file has the stored pieces, and ``numbers``: what the tool itself makes of them, in the dtype in
which it does.
"""

from __future__ import annotations

import importlib
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import torch

GOLDENS = Path(__file__).resolve().parents[1] / "tests" / "conformance" / "goldens" / "quantized.npz"
ROWS, COLUMNS = 32, 128

Tensors = dict[str, torch.Tensor]


def load(packages: Path, name: str) -> Any:
    """A module of a package, without running what the packages around it do when they are imported."""
    parts = name.split(".")[:-1]
    for depth in range(1, len(parts) + 1):
        package = ".".join(parts[:depth])
        if package not in sys.modules:
            module = types.ModuleType(package)
            module.__path__ = [str(packages.joinpath(*parts[:depth]))]
            sys.modules[package] = module
    return importlib.import_module(name)


def grouped(weight: torch.Tensor, group: int, bits: int, sym: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Scales and zero points [N, groups] of a weight, and the weight rounded to what they can say."""
    parts = weight.reshape(weight.shape[0], -1, group)
    most = 2**bits - 1
    if sym:
        scales = (parts.abs().amax(-1) / (most / 2)).half().float()
        zeros = torch.full_like(scales, 2 ** (bits - 1))
    else:
        low, high = parts.amin(-1), parts.amax(-1)
        scales = ((high - low) / most).half().float()
        zeros = torch.round(-low / scales).clamp(1, most)
    codes = (torch.round(parts / scales[..., None]) + zeros[..., None]).clamp(0, most)
    return scales, zeros, ((codes - zeros[..., None]) * scales[..., None]).reshape(weight.shape)


def gptq(packages: Path, weight: torch.Tensor, bits: int, group: int, sym: bool, act_order: bool) -> Tensors:
    layer = load(packages, "auto_gptq.nn_modules.qlinear.qlinear_cuda").QuantLinear(
        bits, group, COLUMNS, ROWS, False, weight_dtype=torch.float16
    )
    places = torch.randperm(COLUMNS) if act_order else torch.arange(COLUMNS)
    scales, zeros, rounded = grouped(weight[:, places], group, bits, sym)
    groups = torch.empty(COLUMNS, dtype=torch.int32)
    groups[places] = (torch.arange(COLUMNS) // group).to(torch.int32)
    linear = torch.nn.Linear(COLUMNS, ROWS, bias=False)
    linear.weight.data = torch.empty_like(rounded, dtype=torch.float16)
    linear.weight.data[:, places] = rounded.half()
    layer.pack(linear, scales, zeros, groups)
    layer.autogptq_cuda_available = False
    with torch.no_grad():
        numbers = layer(torch.eye(COLUMNS, dtype=torch.float16)).T
    pieces = {name: getattr(layer, name) for name in ("qweight", "qzeros", "scales", "g_idx")}
    return {**pieces, "numbers": numbers}


def awq(packages: Path, weight: torch.Tensor, group: int) -> Tensors:
    linear = torch.nn.Linear(COLUMNS, ROWS, bias=False)
    scales, zeros, linear.weight.data = grouped(weight, group, 4, sym=False)
    gemm = load(packages, "awq.modules.linear.gemm").WQLinear_GEMM
    layer = gemm.from_linear(linear, 4, group, scales=scales.T.contiguous(), zeros=zeros.T.contiguous())
    unpack = load(packages, "awq.utils.packing_utils").dequantize_gemm
    numbers = unpack(layer.qweight, layer.qzeros, layer.scales, 4, group).T
    return {"qweight": layer.qweight, "qzeros": layer.qzeros, "scales": layer.scales, "numbers": numbers}


def compressed(weight: torch.Tensor, layout: str, **arguments: Any) -> Tensors:
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from compressed_tensors.quantization.utils import calculate_qparams

    args = QuantizationArgs(**arguments)
    group = {"channel": COLUMNS, "tensor": COLUMNS}.get(str(args.strategy), args.group_size or 0)
    if args.strategy == "block":
        parts = weight.reshape(ROWS // 16, 16, COLUMNS // 64, 64)
        low, high = parts.amin((1, 3)), parts.amax((1, 3))
    elif args.strategy == "tensor":
        low, high = weight.amin().reshape(1), weight.amax().reshape(1)
    else:
        parts = weight.reshape(ROWS, -1, group)
        low, high = parts.amin(-1), parts.amax(-1)
    scale, zero = calculate_qparams(low, high, args)
    state = {"weight": weight, "weight_scale": scale, "weight_zero_point": zero}
    compressor = BaseCompressor.get_value_from_registry(layout)
    scheme = QuantizationScheme(targets=["Linear"], weights=args)
    stored = compressor.compress(state, scheme)
    return {**stored, "numbers": compressor.decompress(dict(stored), scheme)["weight"]}


def blocks(weight: torch.Tensor) -> Tensors:
    from transformers.integrations import finegrained_fp8

    parts = weight.reshape(1, ROWS, COLUMNS // 64, 64)
    scales = parts.abs().amax((1, 3)) / 448
    stored = (parts / scales[:, None, :, None]).reshape(ROWS, COLUMNS).to(torch.float8_e4m3fn)
    numbers = finegrained_fp8._dequantize_fp8_weight(stored, scales, [ROWS, 64], torch.float32)
    return {"weight": stored, "weight_scale_inv": scales, "numbers": numbers}


def as_numpy(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    if tensor.dtype == torch.bfloat16:
        return tensor.contiguous().view(torch.int16).numpy().view(np.uint16)
    if tensor.dtype == torch.float8_e4m3fn:
        return tensor.contiguous().view(torch.uint8).numpy()
    return tensor.contiguous().numpy()


def main() -> None:
    """Write the file."""
    packages = Path(sys.argv[1])
    sys.path.insert(0, str(packages))
    torch.manual_seed(7)
    weight = torch.randn(ROWS, COLUMNS) / COLUMNS**0.5
    cases: dict[str, Tensors] = {}
    for bits in (4, 8):
        for sym in (True, False):
            for act_order in (True, False):
                name = f"gptq-{bits}-{'sym' if sym else 'asym'}{'-act-order' * act_order}"
                cases[name] = gptq(packages, weight, bits, 32, sym, act_order)
    cases["awq"] = awq(packages, weight, 64)
    half = weight.bfloat16()
    for bits in (4, 8):
        for sym in (True, False):
            name = f"words-{bits}-{'sym' if sym else 'asym'}"
            cases[name] = compressed(
                half, "pack-quantized", num_bits=bits, symmetric=sym, strategy="group", group_size=32
            )
    cases["words-4-channels"] = compressed(half, "pack-quantized", num_bits=4, strategy="channel")
    cases["bytes-8-channels"] = compressed(half, "int-quantized", num_bits=8, strategy="channel")
    for strategy in ("tensor", "channel"):
        cases[f"float-{strategy}"] = compressed(half, "float-quantized", num_bits=8, type="float", strategy=strategy)
    cases["float-block"] = compressed(
        half, "float-quantized", num_bits=8, type="float", strategy="block", block_structure=[16, 64]
    )
    cases["fp8-blocks"] = blocks(weight)
    arrays = {f"{case}/{name}": as_numpy(tensor) for case, tensors in cases.items() for name, tensor in tensors.items()}
    np.savez_compressed(GOLDENS, **arrays)
    print(f"{GOLDENS}: {len(cases)} cases, {GOLDENS.stat().st_size} bytes")


if __name__ == "__main__":
    main()
