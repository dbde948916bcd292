#!/usr/bin/env python3
"""Our operators on a CUDA device beside what PyTorch programs use, in one run on one card.

  bench/compare_fla.py OPS_CUDA_BENCH [--wheels FOLDER] [--rounds N]

OPS_CUDA_BENCH is that program of a CUDA build (build/cuda/src/ops/). Against it stand
  flash-linear-attention's chunk_gla and chunk_simple_gla, forward with initial and final state,
  with keys, values and gates repeated to the 28 query heads, as the published model does;
  PyTorch's flex_attention, compiled, with a block mask for the sliding window and grouped heads.
Shapes are those of SpikingBrain-7B: 28 query and 4 key/value heads of 128, 8192 new tokens, a
window of 4096 that is full. All in bf16, gates in f32. Medians of calls between which inputs take turns.
The results are not compared: tests hold ours against a double reference.

--wheels takes packages from a folder of wheels where pip cannot reach a registry: those of
flash-linear-attention, fla-core and einops, which hold no compiled code.
"""

import argparse
import csv
import glob
import importlib
import os
import subprocess
import sys
import tempfile
import zipfile

TOKENS, HEADS, KV_HEADS, DIM, WINDOW = 8192, 28, 4, 128, 4096
SETS = 3  # of inputs, together larger than the L2 cache
OURS = {
    "gated_linear_attention": f"gated_linear_attention {TOKENS} tokens",
    "softmax_attention": f"softmax_attention {TOKENS} tokens at 16384, window {WINDOW}",
}


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("ops_cuda_bench")
    parser.add_argument("--wheels", metavar="FOLDER")
    parser.add_argument("--rounds", type=int, default=3, help="repetitions of everything")
    return parser.parse_args()


def unpack_wheels(folder, to):
    for wheel in glob.glob(os.path.join(folder, "*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(to)
    sys.path.insert(0, to)


def find(module):
    """The module, or None with a line that says what is missing."""
    try:
        return importlib.import_module(module)
    except Exception as error:  # pylint: disable=broad-except; packages fail in many ways
        print(f"missing on this machine: {module}: {type(error).__name__}: {error}")
        return None


def measure_ours(program):
    with tempfile.NamedTemporaryFile(mode="r", suffix=".tsv") as table:
        command = [program, "--tsv", table.name]
        done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        if done.returncode != 0:
            sys.exit(f"{program}: {done.stderr.strip()}")
        rows = csv.DictReader(table, delimiter="\t")
        rows = {row["operator"]: float(row["time_us"]) for row in rows}
    return {name: rows[row] for name, row in OURS.items()}


def median_us(triton, torch, call, sets):
    turn = [0]

    def once():
        turn[0] += 1
        return call(*sets[turn[0] % len(sets)])

    with torch.no_grad():
        for _ in range(2 * len(sets)):
            once()
        torch.cuda.synchronize()
        return 1000 * triton.testing.do_bench(once, warmup=50, rep=300, return_mode="median")


def gate(torch, shape):
    return -0.1 * torch.rand(shape, device="cuda", dtype=torch.float32)


def linear_sets(torch, channel_gates):
    group = HEADS // KV_HEADS
    sets = []
    for _ in range(SETS):
        narrow = [torch.randn(1, TOKENS, KV_HEADS, DIM, device="cuda").bfloat16() for _ in range(2)]
        g = gate(torch, (1, TOKENS, KV_HEADS, DIM) if channel_gates else (1, TOKENS, KV_HEADS))
        k, v, g = (x.repeat_interleave(group, 2).contiguous() for x in (*narrow, g))
        q = torch.randn(1, TOKENS, HEADS, DIM, device="cuda").bfloat16()
        state = torch.randn(1, HEADS, DIM, DIM, device="cuda")
        sets.append((q, k, v, g, state))
    return sets


def measure_fla(torch, triton):
    times = {}
    for name, module, channel_gates in (
        ("chunk_gla", "fla.ops.gla", True),
        ("chunk_simple_gla", "fla.ops.simple_gla", False),
    ):
        package = find(module)
        if package is None:
            continue
        function = getattr(package, name)

        def call(q, k, v, g, state, function=function):
            return function(q, k, v, g, initial_state=state, output_final_state=True)

        times[name] = median_us(triton, torch, call, linear_sets(torch, channel_gates))
    return times


def measure_flex(torch, triton):
    flex = find("torch.nn.attention.flex_attention")
    if flex is None:
        return {}
    keys = WINDOW + TOKENS  # those before the new tokens come first

    def visible(_batch, _head, query, key):
        last = query + WINDOW
        return (key <= last) & (last - key < WINDOW)

    mask = flex.create_block_mask(visible, None, None, TOKENS, keys, device="cuda")
    compiled = torch.compile(flex.flex_attention, dynamic=False)
    sets = []
    for _ in range(SETS):
        q = torch.randn(1, HEADS, TOKENS, DIM, device="cuda").bfloat16()
        k, v = (torch.randn(1, KV_HEADS, keys, DIM, device="cuda").bfloat16() for _ in range(2))
        sets.append((q, k, v))

    def call(q, k, v):
        return compiled(q, k, v, block_mask=mask, enable_gqa=True)

    return {"flex_attention": median_us(triton, torch, call, sets)}


def summarize(rounds):
    """Of each figure the median over the rounds, with its range."""
    table = {}
    for name in {key for one in rounds for key in one}:
        values = sorted(one[name] for one in rounds if name in one)
        table[name] = (values[len(values) // 2], values[0], values[-1])
    return table


def print_table(table):
    print("\n| operator | ours, us | against | its time, us | ratio |")
    print("| --- | --- | --- | --- | --- |")
    for ours, theirs in (
        ("gated_linear_attention", "chunk_gla"),
        ("gated_linear_attention", "chunk_simple_gla"),
        ("softmax_attention", "flex_attention"),
    ):
        time, low, high = table[ours]
        if theirs not in table:
            print(f"| {ours} | {time:.1f} ({low:.1f} .. {high:.1f}) | {theirs} | not measured | |")
            continue
        other, other_low, other_high = table[theirs]
        print(
            f"| {ours} | {time:.1f} ({low:.1f} .. {high:.1f}) | {theirs} "
            f"| {other:.1f} ({other_low:.1f} .. {other_high:.1f}) | {other / time:.2f} |"
        )


def main():
    arguments = parse_arguments()
    with tempfile.TemporaryDirectory() as folder:
        if arguments.wheels:
            unpack_wheels(arguments.wheels, folder)
        torch, triton = find("torch"), find("triton")
        if torch is not None and triton is not None:
            print(f"torch {torch.__version__}, triton {triton.__version__}")
        rounds = []
        for _ in range(arguments.rounds):
            times = {}
            if torch is not None and triton is not None:
                times.update(measure_fla(torch, triton))
                times.update(measure_flex(torch, triton))
            times.update(measure_ours(arguments.ops_cuda_bench))
            print(", ".join(f"{name} {time:.1f} us" for name, time in times.items()))
            rounds.append(times)
        print_table(summarize(rounds))


if __name__ == "__main__":
    main()
