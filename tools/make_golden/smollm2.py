"""Freezes greedy continuations and a perplexity of a GGUF model as llama.cpp computes them.

  python smollm2.py --model SmolLM2-135M-Instruct.Q4_1.gguf --out tests/golden
"""

import argparse
import ctypes
import hashlib
import json
from pathlib import Path

import llama_cpp as lc
import numpy as np

_STEPS = 64
_WINDOW = 512
_PROTOCOL = (
    "The text is tokenized as a whole, without special tokens, and cut into consecutive windows of "
    "`window` tokens; a remainder of at least 2 tokens is a window too. Every window starts from an "
    "empty state. Each token of a window except its first is scored: nll = -ln softmax(logits at the "
    "token before)[token]. perplexity = exp(sum of nll / number of scored tokens).")

_CHAT = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
_PROMPTS = [
    ("story", "Once upon a time, in a village at the foot of the mountains,"),
    ("fact", "The capital of France is"),
    ("python", "def fibonacci(n):\n    \"\"\"Return the n-th Fibonacci number.\"\"\"\n"),
    ("c", "#include <stdio.h>\n\nint main(void) {\n    for (int i = 0; i < 10; i++) {\n"),
    ("chinese", "人工智能是计算机科学的一个分支,"),
    ("list", "Ingredients for a simple bread:\n1. Flour\n2. Water\n3."),
    ("json", "{\"name\": \"Ada\", \"born\": 1815, \"languages\": [\"English\","),
    ("numbers", "1, 1, 2, 3, 5, 8, 13, 21, 34,"),
    ("chat", _CHAT.format("Why is the sky blue?")),
    ("chat_list", _CHAT.format("Name three animals that live in the sea.")),
]


class LlamaCpp:
    """A model and one context of llama.cpp; every call to `logits` continues the sequence."""

    def __init__(self, path, threads):
        lc.llama_backend_init()
        parameters = lc.llama_model_default_params()
        parameters.n_gpu_layers = 0
        parameters.use_extra_bufts = False  # plain kernels: no repacked weights, no AMX
        self.model = lc.llama_model_load_from_file(str(path).encode(), parameters)
        if not self.model:
            raise SystemExit(f"{path}: llama.cpp cannot load it")
        self.vocab = lc.llama_model_get_vocab(self.model)
        self.vocab_size = lc.llama_vocab_n_tokens(self.vocab)
        settings = lc.llama_context_default_params()
        settings.n_ctx = settings.n_batch = settings.n_ubatch = _WINDOW
        settings.n_threads = settings.n_threads_batch = threads
        self.context = lc.llama_init_from_model(self.model, settings)
        self.position = 0

    def tokenize(self, text):
        data = text.encode()
        ids = (lc.llama_token * (len(data) + 8))()
        count = lc.llama_tokenize(self.vocab, data, len(data), ids, len(ids), False, True)
        return list(ids[:count])

    def clear(self):
        lc.llama_memory_clear(lc.llama_get_memory(self.context), True)
        self.position = 0

    def logits(self, tokens):
        """Logits after every one of `tokens`, [len(tokens), vocab]."""
        batch = lc.llama_batch_init(len(tokens), 0, 1)
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i] = token
            batch.pos[i] = self.position + i
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = 0
            batch.logits[i] = 1
        status = lc.llama_decode(self.context, batch)
        lc.llama_batch_free(batch)
        if status:
            raise SystemExit(f"llama_decode: status {status}")
        self.position += len(tokens)
        data = lc.llama_get_logits(self.context)
        shape = (len(tokens), self.vocab_size)
        return np.ctypeslib.as_array(ctypes.cast(data, ctypes.POINTER(ctypes.c_float)), shape).copy()


def greedy(llama, prompt):
    llama.clear()
    row = llama.logits(prompt)[-1]
    ids, gaps = [], []
    for _ in range(_STEPS):
        second, first = np.sort(np.partition(row, -2)[-2:])
        ids.append(int(row.argmax()))
        gaps.append(round(float(first - second), 4))
        row = llama.logits(ids[-1:])[-1]
    return ids, gaps


def negative_log_likelihood(llama, ids):
    """Sum over scored tokens, their number, and the sum of each window."""
    windows, scored = [], 0
    for begin in range(0, len(ids), _WINDOW):
        window = ids[begin:begin + _WINDOW]
        if len(window) < 2:
            break
        llama.clear()
        rows = llama.logits(window)[:-1].astype(np.float64)
        rows -= rows.max(axis=1, keepdims=True)
        targets = rows[np.arange(len(rows)), window[1:]]
        windows.append(float((np.log(np.exp(rows).sum(axis=1)) - targets).sum()))
        scored += len(rows)
    return sum(windows), scored, windows


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, type=Path)
    parser.add_argument("--out", default="tests/golden", type=Path)
    parser.add_argument("--threads", default=2, type=int)
    args = parser.parse_args()
    llama = LlamaCpp(args.model, args.threads)
    prompts = []
    for name, text in _PROMPTS:
        prompt = llama.tokenize(text)
        ids, gaps = greedy(llama, prompt)
        prompts.append({"name": name, "text": text, "prompt": prompt, "continuation": ids,
                        "gaps": gaps})
        print(name, len(prompt), "smallest gap", min(gaps))
    text_file = "perplexity_text.txt"
    ids = llama.tokenize((args.out / text_file).read_text())
    total, scored, windows = negative_log_likelihood(llama, ids)
    perplexity = float(np.exp(total / scored))
    print(f"perplexity {perplexity:.4f} over {scored} tokens")
    document = {
        "model": args.model.name,
        "model_sha256": hashlib.sha256(args.model.read_bytes()).hexdigest(),
        "oracle": f"llama.cpp of llama-cpp-python {lc.__version__}, f16 cache",
        "gaps": "difference of the two largest logits at each step",
        "perplexity": {"protocol": _PROTOCOL, "text": text_file, "window": _WINDOW, "ids": ids,
                       "window_nll": windows, "nll": total, "scored": scored,
                       "perplexity": perplexity},
        "greedy": prompts,
    }
    lines = json.dumps(document, ensure_ascii=False, indent=1)
    (args.out / "smollm2.json").write_text(_join_number_lists(lines) + "\n")


def _join_number_lists(text):
    """Lists of numbers on one line each."""
    import re

    return re.sub(r"\[\s+(-?[\d.][^\[\]{}\"]*?)\s+\]",
                  lambda match: "[" + re.sub(r"\s+", " ", match.group(1)) + "]", text)


if __name__ == "__main__":
    main()
