"""Writes tests/fixtures/core/block_formats.txt: blocks of every format with random codes and the
values that the gguf package reads from them. Needs: pip install gguf numpy.

  python block_formats.py > ../../tests/fixtures/core/block_formats.txt

One line each: the format, the blocks in hex, the values as f32 in hex (little-endian).
"""

import gguf
import numpy as np

# Byte offsets of the f16 scales: they get tame values, all other bytes are random.
SCALES = {
    "Q8_0": [0],
    "Q4_0": [0],
    "Q4_1": [0, 2],
    "Q5_0": [0],
    "Q5_1": [0, 2],
    "Q4_K": [0, 2],
    "Q5_K": [0, 2],
    "Q6_K": [208],
}


def main():
    rng = np.random.default_rng(20260)
    for name, offsets in SCALES.items():
        dtype = getattr(gguf.GGMLQuantizationType, name)
        elements, size = gguf.GGML_QUANT_SIZES[dtype]
        count = 2 if elements == 32 else 1
        blocks = rng.integers(0, 256, (count, size), dtype=np.uint8)
        for offset in offsets:
            scale = rng.uniform(-0.2, 0.2, (count, 1)).astype("<f2")
            blocks[:, offset : offset + 2] = scale.view(np.uint8)
        values = gguf.quants.dequantize(blocks, dtype).astype("<f4")
        print(name.lower(), blocks.tobytes().hex(), values.tobytes().hex())


main()
