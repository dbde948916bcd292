#!/usr/bin/env python3
"""Writes what scripts/gpu_check.sh measured into a document, as two tables.

  gpu_table.py RESULTS FILE    RESULTS holds prompts.json, million.json, longest.json and
                               spikes.json of `spb bench --json`, and *.tsv of the operators'
                               benches (--tsv); what is missing is left out. The tables replace
                               what stands in FILE between the marks.
"""

import csv
import json
import pathlib
import sys

BEGIN = "<!-- gpu_check: begin -->"
END = "<!-- gpu_check: end -->"
BENCH = "spb bench --preset spikingbrain-7b --random --device cuda --chunk 16384"
COMMANDS = {
    "prompts": f"{BENCH} --prefill 32k,128k --depths 4k,256k,1M -n 64 -r 3",
    "million": f"{BENCH} --prefill 1M --depths 0 -n 4 -r 1",
    "longest": f"{BENCH} --prefill 4M --depths 0 -n 4 -r 1",
    "spikes": f"{BENCH} --w8aspike --prefill 32k,128k --depths 4k -n 32 -r 3",
}
# (name, file, tokens, seconds to reach)
PROMPTS = (
    ("G1 time to first token, 128k", "prompts", 1 << 17, 2.75),
    ("G1 time to first token, 1M", "million", 1 << 20, 22.0),
    ("G2 the same with W8ASpike, 128k", "spikes", 1 << 17, 2.2),
    ("G5 4M tokens on one card", "longest", 1 << 22, 95.0),
)
DECODE_SHARE = 0.8
# (row of ops_cuda_bench, what it is called here, microseconds to reach)
LINEAR_ATTENTION = (
    ("gated_linear_attention 8192 tokens", "forward", 150.0),
    ("gated_linear_attention and backward 8192 tokens", "forward and backward", 700.0),
)


def read_json(folder, name):
    path = folder / f"{name}.json"
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def rows_of(report, kind):
    return [row for row in report["results"] if row["kind"] == kind] if report else []


def verdict(met):
    return "met" if met else "**missed**"


def speed(target, time):
    return f"{100 * target / time:.0f} % of the target's speed, {verdict(time <= target)}"


def prompt_rows(reports):
    for what, name, tokens, target in PROMPTS:
        for row in rows_of(reports[name], "prefill"):
            if row["context"] != tokens:
                continue
            seconds = tokens / row["tokens_per_second"]
            yield what, f"<= {target} s", f"{seconds:.2f} s", speed(target, seconds), COMMANDS[name]


def decode_rows(report):
    for row in rows_of(report, "decode"):
        rate = row["tokens_per_second"]
        share = rate * row["bytes_per_token"] / report["memory_read_bytes_per_second"]
        filled = ", random state" if row["random_state"] else ""
        yield (
            f"G3 decode at {row['context']:,}{filled}",
            f">= {100 * DECODE_SHARE:.0f} % of a copy",
            f"{rate:.1f} tokens/s",
            f"{100 * share:.0f} %, {verdict(share >= DECODE_SHARE)}",
            COMMANDS["prompts"],
        )


def read_operators(folder):
    rows = []
    for path in sorted(folder.glob("*.tsv")):
        with path.open() as file:
            rows += csv.DictReader(file, delimiter="\t")
    return rows


def operator_target(operators):
    for row in operators:
        for name, what, target in LINEAR_ATTENTION:
            if row["operator"] != name:
                continue
            time = float(row["time_us"])
            yield (
                f"G4 gated_linear_attention {what}, T 8192, 28 / 4 heads",
                f"<= {target / 1e3} ms",
                f"{time / 1e3:.3f} ms",
                speed(target, time),
                "ops_cuda_bench",
            )


def operator_cells(row):
    operations = float(row["operations"])
    return (
        row["operator"],
        row["time_us"],
        f"{float(row['bytes']) / 1e6:.4g}",
        f"{operations / 1e9:.4g}" if operations > 0 else "",
        row["floor_us"],
        f"{100 * float(row['share']):.0f} %",
        f"{float(row['tb_s']):.2f}",
        row["tflop_s"] if operations > 0 else "",
    )


def tables(folder):
    reports = {name: read_json(folder, name) for name in COMMANDS}
    operators = read_operators(folder)
    lines = ["| figure | target | measured | share | command |", "| --- | --- | --- | --- | --- |"]
    targets = [*prompt_rows(reports), *decode_rows(reports["prompts"]), *operator_target(operators)]
    for what, target, measured, share, command in sorted(targets):
        lines.append(f"| {what} | {target} | {measured} | {share} | `{command}` |")
    lines += [
        "",
        "| operator | time, us | MB | GFLOP | floor, us | share | TB/s | TFLOP/s |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    lines += [f"| {' | '.join(operator_cells(row))} |" for row in operators]
    return "\n".join(lines)


def replace_between_marks(text, content, path):
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        sys.exit(f"{path}: expected {BEGIN} and then {END}, once each")
    head, rest = text.split(BEGIN)
    return f"{head}{BEGIN}\n{content}\n{END}{rest.split(END)[1]}"


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    path = pathlib.Path(sys.argv[2])
    text = replace_between_marks(path.read_text(), tables(pathlib.Path(sys.argv[1])), path)
    path.write_text(text)


if __name__ == "__main__":
    main()
