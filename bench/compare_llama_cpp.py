#!/usr/bin/env python3
"""Compares spb with llama.cpp on the same machine, in turns (A B A B).

  pip install llama-cpp-python        (see "Building llama.cpp" below)
  bench/compare_llama_cpp.py same MODEL.gguf --spb build/release/src/cli/spb
      Prefill of 2048 tokens and decode at a context of 1024, both programs on one file.
  bench/compare_llama_cpp.py deep LLAMA.gguf HYBRID.gguf --spb ... --depths 4k,64k,256k
      Decode at deep contexts: llama.cpp on a Transformer, spb on the hybrid of the same size.
      Without HYBRID.gguf only llama.cpp is measured.

llama.cpp first runs once with each of its settings (flash attention on and off, f16 and q8_0 cache,
micro-batch sizes, repacked weights or plain) and then competes with the best. Both programs use
--threads threads. Deep contexts of llama.cpp are filled with copies of a really prefilled block,
see compare_llama_cpp_worker.py; `check` compares such a context with a really prefilled one.

Building llama.cpp: CMAKE_ARGS="-DGGML_NATIVE=ON" pip install llama-cpp-python. GCC 12 drops the
stores to the AMX tile configuration, so that llama.cpp crashes on processors with AMX; add
-DCMAKE_CXX_FLAGS="-fno-tree-dse -fno-dse" there, or use another compiler.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from datetime import datetime, timezone
from pathlib import Path

_WORKER = Path(__file__).with_name("compare_llama_cpp_worker.py")
_ATTENTION = [{"flash": "on", "cache": "f16"}, {"flash": "off", "cache": "f16"},
              {"flash": "on", "cache": "q8_0"}]


def parse_count(text):
    scale = {"k": 1024, "m": 1024 * 1024}.get(text[-1:].lower(), 1)
    return int(text.rstrip("kKmM")) * scale


def run(command):
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}\n{done.stderr[-2000:]}")
    return done.stdout


def llama(args, **request):
    """Tokens per second of llama.cpp on args.model."""
    request |= {"model": args.model, "threads": args.threads}
    output = run([*args.wrap.split(), sys.executable, _WORKER, json.dumps(request)])
    return json.loads(output.splitlines()[-1])["tokens_per_second"]


def spb(args, model, kind, context, steps):
    """Tokens per second of spb: prefill of `context` tokens, or decode at that depth."""
    lengths = {"prefill": "0", "decode": "0"} | {kind: str(context)}
    output = run([*args.wrap.split(), args.spb, "bench", model, "--threads", str(args.threads),
                  "--json", "--prefill", lengths["prefill"], "--depths", lengths["decode"],
                  "--tokens", str(steps), "--repeat", str(args.repeat)])
    rows = json.loads(output)["results"]
    return next(row for row in rows if row["kind"] == kind)["tokens_per_second"]


def describe(settings):
    return " ".join(f"{key}={value}" for key, value in settings.items())


def best_setting(what, choices, measure):
    """Every setting once; returns the fastest and what all of them reached."""
    tried = []
    for settings in choices:
        rate = measure(settings)
        tried.append({"settings": settings, "tokens_per_second": rate})
        print(f"  llama.cpp {what}, {describe(settings)}: {rate:.2f} tokens/s", flush=True)
    return max(tried, key=lambda entry: entry["tokens_per_second"])["settings"], tried


def spread(values):
    return {"median": statistics.median(values), "min": min(values), "max": max(values),
            "values": values}


def alternate(rounds, first, second):
    """The two measurements in turn; their medians and the ratio second / first."""
    a, b = [], []
    for _ in range(rounds):
        a.append(first())
        b.append(second())
    ratio = statistics.median(b) / statistics.median(a)
    return {"llama_cpp": spread(a), "spb": spread(b), "ratio": ratio}


def compare_same(args):
    prefill_choices = [{"flash": flash, "ubatch": ubatch, "extra": extra}
                       for flash in ("on", "off") for ubatch in (256, 512, 2048)
                       for extra in (True, False)]
    decode_choices = [setting | {"extra": extra} for setting in _ATTENTION
                      for extra in (True, False)]
    if args.quick:
        prefill_choices = [c for c in prefill_choices if c["ubatch"] == 512 and c["extra"]]

    def prefill(settings, repeat=1):
        return llama(args, task="prefill", tokens=args.prompt, repeat=repeat, **settings)

    def decode(settings):
        return llama(args, task="decode", depth=args.context, steps=args.steps,
                     repeat=args.repeat, **settings)

    best_prefill, tried_prefill = best_setting("prefill", prefill_choices, prefill)
    best_decode, tried_decode = best_setting("decode", decode_choices, decode)
    results = {
        "prefill": alternate(args.rounds, lambda: prefill(best_prefill, args.repeat),
                             lambda: spb(args, args.model, "prefill", args.prompt, 1)),
        "decode": alternate(args.rounds, lambda: decode(best_decode),
                            lambda: spb(args, args.model, "decode", args.context, args.steps)),
    }
    for kind, tokens in (("prefill", args.prompt), ("decode", args.context)):
        row = results[kind]
        print(f"{kind} at {tokens}: llama.cpp {row['llama_cpp']['median']:.2f}, "
              f"spb {row['spb']['median']:.2f} tokens/s, ratio {row['ratio']:.2f}")
    return {"results": results, "best": {"prefill": best_prefill, "decode": best_decode},
            "tried": {"prefill": tried_prefill, "decode": tried_decode}}


def steps_at(depth, steps):
    """Fewer steps where one takes long."""
    return max(4, steps // (1 + depth // 32768))


def compare_deep(args):
    results = []
    for depth in map(parse_count, args.depths.split(",")):
        steps = steps_at(depth, args.steps)

        def measure(settings, depth=depth, steps=steps, repeat=args.repeat):
            return llama(args, task="decode", depth=depth, steps=steps, repeat=repeat,
                         fill=args.fill, **settings)

        # Three steps tell the settings apart; at 256k a step of the slowest takes half a minute.
        best, tried = best_setting(f"decode at {depth}", _ATTENTION,
                                   lambda settings: measure(settings, steps=3, repeat=1))
        row = {"depth": depth, "best": best, "tried": tried}
        if args.hybrid:
            row |= alternate(args.rounds, lambda: measure(best),
                             lambda: spb(args, args.hybrid, "decode", depth, args.steps))
            print(f"decode at {depth}: llama.cpp {row['llama_cpp']['median']:.3f}, "
                  f"spb {row['spb']['median']:.2f} tokens/s, ratio {row['ratio']:.2f}", flush=True)
        results.append(row)
    return {"results": results}


def check_fill(args):
    """A context made of copies must decode as fast as a really prefilled one."""
    rows = []
    for settings in _ATTENTION:
        common = {"task": "decode", "depth": args.context, "steps": args.steps,
                  "repeat": args.repeat} | settings
        prefilled, copied = [], []
        for _ in range(args.rounds):
            prefilled.append(llama(args, **common))
            copied.append(llama(args, **common, fill=args.fill))
        row = {"settings": settings, "prefilled": spread(prefilled), "copied": spread(copied),
               "ratio": statistics.median(copied) / statistics.median(prefilled)}
        print(f"context of {args.context}, {describe(settings)}: prefilled "
              f"{row['prefilled']['median']:.2f}, copied {row['copied']['median']:.2f} tokens/s, "
              f"ratio {row['ratio']:.3f}", flush=True)
        rows.append(row)
    return {"results": rows}


def machine():
    model = platform.processor()
    try:
        text = Path("/proc/cpuinfo").read_text()
        names = [line for line in text.splitlines() if line.startswith("model name")]
        model = names[0].split(":", 1)[1].strip() if names else model
    except OSError:
        pass
    return {"processor": model, "system": platform.system(), "machine": platform.machine()}


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5, help="turns of A and B")
    parser.add_argument("--steps", type=int, default=64, help="tokens decoded per measurement")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--out", type=Path, help="JSON file of everything measured")
    parser.add_argument("--wrap", default="", help="command to run each measurement under, "
                        "e.g. 'taskset -c 0,1'")
    commands = parser.add_subparsers(dest="command", required=True)
    same = commands.add_parser("same", help="both programs on one file")
    same.add_argument("model")
    same.add_argument("--spb", default="spb")
    same.add_argument("--prompt", type=parse_count, default=2048)
    same.add_argument("--context", type=parse_count, default=1024)
    same.add_argument("--quick", action="store_true", help="try fewer settings of llama.cpp")
    same.set_defaults(function=compare_same)
    deep = commands.add_parser("deep", help="decode at deep contexts")
    deep.add_argument("model")
    deep.add_argument("hybrid", nargs="?")
    deep.add_argument("--spb", default="spb")
    deep.add_argument("--depths", default="4k,64k,256k")
    deep.add_argument("--fill", type=parse_count, default=1024)
    deep.set_defaults(function=compare_deep)
    check = commands.add_parser("check", help="copied against prefilled contexts of llama.cpp")
    check.add_argument("model")
    check.add_argument("--context", type=parse_count, default=4096)
    check.add_argument("--fill", type=parse_count, default=1024)
    check.set_defaults(function=check_fill)
    return parser.parse_args()


def main():
    args = parse_arguments()
    start = time.time()
    report = {"command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
              "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"), "machine": machine(),
              "threads": args.threads, **args.function(args)}
    report["seconds"] = round(time.time() - start)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
