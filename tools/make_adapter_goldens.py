"""Compute with PEFT what the tiny random models of the tests must answer with adapters.

    python tools/make_adapter_goldens.py            write tests/conformance/goldens/adapters.npz
    python tools/make_adapter_goldens.py --check    compute again and compare with the file that is there

Needs the ``oracle`` extra (torch and transformers), and peft. For each case, the float32 logits of some positions, with
the adapter as PEFT loads it from the directory; they are checked against the model into which PEFT merged it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import peft
import torch
import transformers

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests"), str(ROOT / "tools")]

from make_goldens import prompts  # noqa: E402
from support.adapters import ADAPTER_CASES, AdapterCase  # noqa: E402
from support.tiny_models import CASES, write_hf_directory  # noqa: E402

GOLDEN = ROOT / "tests" / "conformance" / "goldens" / "adapters.npz"


@torch.no_grad()
def compute(case: AdapterCase) -> dict[str, np.ndarray]:
    """The logits of one case: of the last prompt of its model, at some of its positions."""
    prompt = prompts(CASES[case.model])[-1]
    rows = np.array([0, 15, 16, len(prompt) - 1])
    with tempfile.TemporaryDirectory() as directory:
        path = write_hf_directory(CASES[case.model], Path(directory) / "model")
        base = transformers.AutoModelForCausalLM.from_pretrained(
            path, dtype=torch.float32, attn_implementation="eager"
        ).eval()
        tokens = torch.tensor([prompt])
        plain = base(tokens).logits[0]
        with warnings.catch_warnings():
            # PEFT only warns of tensors that are missing or left over.
            warnings.filterwarnings("error", message="(?s).*(missing|unexpected)")
            model = peft.PeftModel.from_pretrained(base, case.write(Path(directory) / "adapter")).eval()
        logits = model(tokens).logits[0]
        merged = model.merge_and_unload()(tokens).logits[0]
    largest = logits.abs().max()
    error, effect = ((logits - other).abs().max() / largest for other in (merged, plain))
    print(f"  merged differs by {error:.1e}, without it {effect:.1e}")
    if error > 1e-5 or effect < 0.1:
        raise SystemExit("the case tests nothing")
    return {
        "digest": np.asarray(case.digest()),
        "prompt": np.array(prompt),
        "rows": rows,
        "logits": logits[rows].numpy(),
    }


def main() -> int:
    """Write or check the file."""
    parser = argparse.ArgumentParser(description="Golden logits of adapters, from PEFT.")
    parser.add_argument("--check", action="store_true", help="compare with the file instead of writing it")
    arguments = parser.parse_args()
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, peft {peft.__version__}")
    torch.set_num_threads(1)
    new = {}
    for name, case in ADAPTER_CASES.items():
        print(name)
        new |= {f"{name}.{key}": value for key, value in compute(case).items()}
    if not arguments.check:
        np.savez_compressed(GOLDEN, **new)
        return 0
    with np.load(GOLDEN) as old:
        different = [
            key
            for key, value in new.items()
            if key not in old
            or not (np.allclose(value, old[key], atol=1e-4) if value.dtype.kind == "f" else (value == old[key]).all())
        ]
    print("\n".join(f"{key} differs" for key in different))
    return 1 if different else 0


if __name__ == "__main__":
    raise SystemExit(main())
