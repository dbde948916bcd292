"""Writes tests/fixtures/spike/{threshold,codec}.json: spike counts and spike trains as the reference
computes them, and what it does where it fails.

  python spiking.py --reference SpikingBrain-7B --out ../../tests/fixtures/spike

f32 numbers are stored as their 32 bits.
"""

import argparse
import importlib
import json
import sys
import types
from pathlib import Path

import torch

torch.set_num_threads(1)


def import_reference(checkout):
    """The modules quant_linear and neuron of the checkout; plotting is replaced by nothing."""
    for name in ("matplotlib", "matplotlib.pyplot", "matplotlib.ticker"):
        sys.modules.setdefault(name, types.ModuleType(name))
    sys.modules["matplotlib.ticker"].MaxNLocator = None
    sys.path.insert(0, str(checkout))
    quant_linear = importlib.import_module("W8ASpike.quant_linear")
    neuron = importlib.import_module("W8ASpike.Int2Spike.neuron")
    if not quant_linear.spike_is_available:
        raise SystemExit(f"{checkout}: the spike coding could not be imported")
    return quant_linear, neuron


def bits(tensor):
    return tensor.float().contiguous().view(torch.int32).flatten().tolist()


def normal(rows, channels, scale=1.0, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(rows, channels, generator=generator) * scale).to(dtype)


def tie_rows():
    """Rows whose threshold is exactly 1 or 2, with quotients of exactly n + 1/2."""
    halves = [0.5, 1.5, 2.5, 3.5, -0.5, -1.5, -2.5, -3.5, 126.5, -127.5]
    row = halves + [3.0] * 100
    row.append(3.0 * (len(row) + 1) - sum(abs(v) for v in row))
    one = torch.tensor([row])
    return torch.cat([one, -2 * one])


def outlier_rows():
    x = normal(3, 256, seed=4)
    x[0, 3], x[0, 200], x[1, 0], x[2, 255] = 90.0, -333.25, -1e6, 70.5
    return x


def threshold_cases():
    zeros = torch.zeros(2, 33)
    mixed = normal(2, 33, seed=5)
    mixed[0] = 0
    low, high = normal(2, 40, 5e-6, seed=6), normal(2, 40, 2e5, seed=7)
    bf16 = torch.bfloat16
    return [
        ("random", normal(3, 97, seed=1), 3.0),
        ("one_channel", torch.tensor([[0.7], [-12.0]]), 3.0),
        ("head", normal(6, 128, 4.0, seed=2), 3.0),
        ("k_2.5", normal(2, 300, 0.02, seed=3), 2.5),
        ("ties", tie_rows(), 3.0),
        ("outliers", outlier_rows(), 3.0),
        ("zeros", zeros, 3.0),
        ("one_zero_row", mixed, 3.0),
        ("clamped_below", low, 3.0),
        ("clamped_above", high, 3.0),
        ("no_negative", normal(1, 50, seed=8).abs(), 3.0),
        ("bf16", normal(6, 96, seed=9, dtype=bf16), 3.0),
        ("bf16_wide", normal(1, 777, 0.3, seed=10, dtype=bf16), 3.0),
        ("bf16_clamped", normal(1, 40, 2e5, seed=11, dtype=bf16), 3.0),
    ]


def reference_error(body):
    try:
        body()
    except (ValueError, TypeError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def check_margin(name, x, threshold):
    """Another order of summation must not change a count: quotients keep away from ties."""
    quotient = x.float() / threshold
    distance = ((quotient - quotient.floor()) - 0.5).abs()
    close = (distance < 1e-5 * quotient.abs().clamp(min=1)) & (distance > 0)
    if close.any():
        raise SystemExit(f"{name}: a quotient lies too close to a tie; change the seed")


def threshold_file(quant_linear):
    cases = []
    for name, x, k in threshold_cases():
        quant_linear.spike_is_available = True
        error = reference_error(lambda: quant_linear.dynamic_spikes(x, k))
        quant_linear.spike_is_available = False  # the same counts, without the spike coding
        counts, threshold = quant_linear.dynamic_spikes(x, k)
        check_margin(name, x, threshold)
        cases.append({
            "name": name,
            "bf16_mean": x.dtype == torch.bfloat16,
            "k": k,
            "shape": list(x.shape),
            "x": bits(x),
            "thresholds": bits(threshold),
            "counts": [int(c) for c in counts.flatten().tolist()],
            "reference_error": error,
        })
    return {"torch": torch.__version__, "cases": cases}


def codec_inputs():
    generator = torch.Generator().manual_seed(20)
    unsigned = torch.randint(0, 40, (61,), generator=generator).tolist()
    signed = torch.randint(-19, 20, (61,), generator=generator).tolist()
    byte = torch.randint(-127, 128, (40,), generator=generator).tolist() + [-128, 127]
    powers = [s * (2**b + d) for b in range(1, 15) for d in (-1, 0, 1) for s in (-1, 1)]
    return [
        ("binary", "unsigned", unsigned, None),
        ("binary", "longer", [0, 1, 2, 3], 5),
        ("binary", "negative", [1, -1], None),
        ("binary", "too_short", [0, 5, 9], 4),
        ("ternary", "signed", signed, None),
        ("ternary", "longer", [0, 1, -2, 3, -3], 5),
        ("ternary", "too_short", [0, 5, -9], 4),
        ("bitwise", "unsigned", unsigned, None),
        ("bitwise", "zeros", [0, 0, 0], None),
        ("bitwise", "longer", [0, 1, 6], 5),
        ("bitwise", "negative", [1, -1], None),
        ("bitwise", "too_short", [0, 5, 9], 3),
        ("bidirectional", "signed", signed, None),
        ("bidirectional", "powers", powers, None),
        ("bidirectional", "byte", byte, None),
        ("bidirectional", "too_short", [0, 5, -9], 3),
        ("twos_complement", "signed", signed, None),
        ("twos_complement", "byte", byte, None),
        ("twos_complement", "longer", [0, 1, -1, 5, -5], 6),
        ("twos_complement", "too_short", [0, 5, -9], 4),
    ]


def make_node(neuron, coding):
    return {
        "binary": neuron.SpikeCountBinaryLIFNode,
        "ternary": neuron.SpikeCountTernaryLIFNode,
        "bitwise": neuron.SpikeCountBitwiseNode,
        "bidirectional": lambda: neuron.SpikeCountBitwiseNode(True),
        "twos_complement": lambda: neuron.SpikeCountBitwiseNode(True, True),
    }[coding]()


def codec_file(neuron):
    cases = []
    for coding, name, counts, timesteps in codec_inputs():
        x = torch.tensor(counts, dtype=torch.float32)
        node = make_node(neuron, coding)
        case = {"coding": coding, "name": name, "counts": counts, "explicit": timesteps is not None}
        case["reference_error"] = reference_error(lambda: node(x, timesteps))
        if case["reference_error"] is None:
            train = node.spike_seq
            decoded = neuron.spike_dequant(train, node)
            if coding == "twos_complement":  # the reference leaves this part to its caller
                decoded = decoded - train[0] * 2 ** train.shape[0]
            case |= {
                "timesteps": train.shape[0],
                "train": "".join("-0+"[int(s) + 1] for s in train.flatten().tolist()),
                "decoded": [int(v) for v in decoded.tolist()],
                "firing_rate_bits": bits(node.firing_rate())[0],
            }
        cases.append(case)
    stale = make_node(neuron, "binary")
    stale(torch.tensor([2.0]))
    return {
        "torch": torch.__version__,
        "cases": cases,
        # A node keeps the timesteps of its first call and cuts the counts of the second.
        "second_call": {"counts": [5], "decoded": int(stale(torch.tensor([5.0])).sum())},
    }


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--reference", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    quant_linear, neuron = import_reference(arguments.reference)
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name, content in (
        ("threshold", threshold_file(quant_linear)),
        ("codec", codec_file(neuron)),
    ):
        text = json.dumps(content, indent=None, separators=(",", ":"))
        text = text.replace('{"name"', '\n{"name"').replace('{"coding"', '\n{"coding"')
        (arguments.out / f"{name}.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
