"""GGUF's blocks: the same numbers, to the last bit, as the ``gguf`` package makes of them."""

from __future__ import annotations

import numpy as np
import pytest

from support.gguf_files import BLOCK_TYPES, dequantized, random_blocks
from windlass.quantization import Format, as_int8
from windlass.quantization.ggml import GGML_TYPES, to_tensor

ROWS = 7


@pytest.mark.parametrize("number", BLOCK_TYPES, ids=lambda number: GGML_TYPES[number].name)
def test_numbers_are_bit_equal(number: int) -> None:
    kind = GGML_TYPES[number]
    columns = 3 * kind.block
    for seed in range(20):
        blocks = random_blocks(number, ROWS, columns, np.random.default_rng(seed))
        expected = dequantized(number, blocks)
        tensor = to_tensor(kind, blocks, (ROWS, columns))
        assert tensor.dequantize().tobytes() == expected.tobytes()
        vector = to_tensor(kind, blocks[:1], (columns,))
        assert vector.format is Format.F32
        assert vector.data.tobytes() == expected[0].tobytes()
        if tensor.format.grouped:
            # As close as the estimate of the weights' size says.
            values = np.ptp(tensor.codes().astype(int)) + 1
            spared = 0 if tensor.format is not Format.INT8 else 3 if values <= 32 else 2 if values <= 64 else 0
            assert tensor.nbytes * 8 == pytest.approx(ROWS * columns * (kind.bits + spared))
            for group in (tensor.group_size, 8):
                assert as_int8(tensor, group).dequantize().tobytes() == expected.tobytes()


def test_every_scale_of_mxfp4() -> None:
    kind = GGML_TYPES[39]
    blocks = np.zeros((1, 256, kind.block_bytes), dtype=np.uint8)
    blocks[0, :, 0] = np.arange(256)
    blocks[0, :, 1:] = np.arange(16) * 0x11
    blocks = blocks[:, :250]  # with the largest ones numbers overflow
    got = to_tensor(kind, blocks.reshape(1, -1), (1, 250 * 32)).dequantize()
    expected = dequantized(39, blocks.reshape(1, -1))
    np.testing.assert_array_equal(got, expected)


def test_groups_that_do_not_divide_are_refused() -> None:
    kind = GGML_TYPES[8]
    tensor = to_tensor(kind, random_blocks(8, 1, 32, np.random.default_rng(0)), (1, 32))
    with pytest.raises(ValueError, match="groups of 32 has none of 12"):
        as_int8(tensor, 12)
