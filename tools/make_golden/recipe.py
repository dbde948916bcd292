"""Random weights from a recipe that needs no storage: the C++ twin is tests/golden/golden_recipe.cpp.

Element i of the tensor called NAME is (2u - 1) * scale + offset, computed in double and rounded to
float32, and from there to bfloat16 (nearest even) where the model is bfloat16. u is the top 53 bits
of the (i + 1)-th output of SplitMix64 seeded with the FNV-1a hash (64 bits) of NAME.

Edits then change ranges of elements, one after the other, before the rounding to float32:
["times", first, count, factor] multiplies, ["set", first, count, value] replaces, and
["grid", first, count, step] moves to the nearest multiple of a step that is a power of two (the
even one of two).
"""

from dataclasses import dataclass

import numpy as np
import torch

_GOLDEN_GAMMA = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class TensorRecipe:
    name: str
    shape: tuple
    scale: float
    offset: float = 0.0
    edits: tuple = ()

    def as_json(self):
        row = [self.name, list(self.shape), self.scale, self.offset]
        return row + [[list(edit) for edit in self.edits]] if self.edits else row


def fnv1a64(text: str) -> int:
    value = 0xCBF29CE484222325
    for byte in text.encode():
        value = ((value ^ byte) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return value


def uniform(name: str, count: int) -> np.ndarray:
    """The first `count` numbers in [0, 1) of the stream called `name`."""
    with np.errstate(over="ignore"):
        steps = np.arange(1, count + 1, dtype=np.uint64)
        z = np.uint64(fnv1a64(name)) + steps * _GOLDEN_GAMMA
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return (z >> np.uint64(11)).astype(np.float64) * 2.0**-53


def make_tensor(recipe: TensorRecipe) -> torch.Tensor:
    count = int(np.prod(recipe.shape))
    values = (2.0 * uniform(recipe.name, count) - 1.0) * recipe.scale + recipe.offset
    for kind, first, count, number in recipe.edits:
        part = values[first:first + count]
        if kind == "times":
            part *= number
        elif kind == "set":
            part[:] = number
        else:
            part[:] = np.rint(part / number) * number
    return torch.from_numpy(values.astype(np.float32)).reshape(recipe.shape)


def make_tokens(case: str, count: int, vocab_size: int) -> list:
    return [int(v) for v in np.floor(uniform(f"tokens of {case}", count) * vocab_size)]


def short_float(value: float) -> float:
    """A scale with few digits, so that the stored file is short and exact."""
    return float(f"{value:.4g}")


def linear_scale(fan_in: int, gain: float) -> float:
    """Half-width of a uniform distribution that maps unit-variance inputs to variance gain^2."""
    return short_float(gain * (3.0 / fan_in) ** 0.5)
