"""One measurement of llama.cpp in a process of its own: reads a JSON request, prints a JSON result.

  {"model": FILE, "task": "prefill", "tokens": 2048, ...}
  {"model": FILE, "task": "decode", "depth": 262144, "fill": 1024, ...}

With "fill" the depth is reached by copying the key/value state of a really prefilled block of that
many tokens again and again at increasing positions, which takes seconds where a prefill would take
hours; the time of a decode step depends on the number of cells, not on their values.
Settings: threads, flash ("on", "off"), cache ("f16", "q8_0"), ubatch, extra (repacked and AMX
weights), steps, repeat. The low-level interface of llama-cpp-python is used throughout.
"""

import ctypes
import json
import random
import statistics
import struct
import sys
import time

import llama_cpp as lc

_CACHE_TYPES = {"f16": 1, "q8_0": 8}
_FLASH = {"off": 0, "on": 1}
_BLOCK_SEQUENCE = 1  # where copied blocks arrive before they join sequence 0


def log_quietly():
    @lc.llama_log_callback
    def on_log(level, text, _):
        if level >= 4:  # errors
            sys.stderr.write(text.decode(errors="replace"))

    lc.llama_log_set(on_log, ctypes.c_void_p())
    return on_log


class Runner:
    """A model and one context."""

    def __init__(self, request, model=None):
        self.request = request
        lc.llama_backend_init()
        self.model = model or self._load()
        self.vocab_size = lc.llama_vocab_n_tokens(lc.llama_model_get_vocab(self.model))
        self.random = random.Random(1)

    def _load(self):
        parameters = lc.llama_model_default_params()
        parameters.n_gpu_layers = 0
        parameters.use_extra_bufts = self.request.get("extra", True)
        model = lc.llama_model_load_from_file(self.request["model"].encode(), parameters)
        if not model:
            raise SystemExit(f"{self.request['model']}: llama.cpp cannot load it")
        return model

    def open(self, cells, ubatch):
        settings = lc.llama_context_default_params()
        settings.n_ctx = -(-cells // 256) * 256
        settings.n_batch = max(ubatch, 2048)
        settings.n_ubatch = ubatch
        settings.n_seq_max = 2
        settings.kv_unified = True
        settings.n_threads = settings.n_threads_batch = self.request.get("threads", 2)
        settings.flash_attn_type = _FLASH[self.request.get("flash", "on")]
        settings.type_k = settings.type_v = _CACHE_TYPES[self.request.get("cache", "f16")]
        context = lc.llama_init_from_model(self.model, settings)
        if not context:
            raise SystemExit(f"llama.cpp refuses the context: {self.request}")
        return context

    def feed(self, context, tokens, first):
        """Random tokens at positions first, first + 1, ...; logits of the last one only."""
        batch = lc.llama_batch_init(2048, 0, 1)
        for begin in range(0, tokens, 2048):
            batch.n_tokens = min(2048, tokens - begin)
            for i in range(batch.n_tokens):
                batch.token[i] = self.random.randrange(self.vocab_size)
                batch.pos[i] = first + begin + i
                batch.n_seq_id[i] = 1
                batch.seq_id[i][0] = 0
                batch.logits[i] = begin + i == tokens - 1
            status = lc.llama_decode(context, batch)
            if status:
                raise SystemExit(f"llama_decode: status {status}")
        lc.llama_synchronize(context)
        lc.llama_batch_free(batch)


def prefill(runner):
    request = runner.request
    tokens = request["tokens"]
    context = runner.open(tokens, request.get("ubatch", 512))
    rates = []
    for _ in range(request.get("repeat", 3) + 1):
        lc.llama_memory_clear(lc.llama_get_memory(context), True)
        start = time.perf_counter()
        runner.feed(context, tokens, 0)
        rates.append(tokens / (time.perf_counter() - start))
    return {"rates": rates[1:]}  # the first one also warms


def saved_block(runner, tokens):
    """The state of `tokens` really prefilled tokens, as llama.cpp serializes it."""
    context = runner.open(tokens, runner.request.get("ubatch", 512))
    runner.feed(context, tokens, 0)
    size = lc.llama_state_seq_get_size(context, 0)
    block = (ctypes.c_uint8 * size)()
    if lc.llama_state_seq_get_data(context, block, size, 0) != size:
        raise SystemExit("llama_state_seq_get_data: a short state")
    lc.llama_free(context)
    return block


def find_cells(block, tokens):
    """Where the table of cells begins: (position, number of sequences, sequence) for each token."""
    table = b"".join(struct.pack("<iIi", position, 1, 0) for position in range(tokens))
    offset = bytes(block[:4096 + len(table)]).find(table)
    if offset < 0:
        raise SystemExit("the state of this llama.cpp has no table of cells in the known format")
    return offset


def fill(runner, context, depth, tokens):
    """Gives sequence 0 `depth` positions made of copies of one block."""
    if depth % tokens:
        raise SystemExit(f"depth {depth} is not a multiple of the block of {tokens}")
    block = saved_block(runner, tokens)
    offset = find_cells(block, tokens)
    memory = lc.llama_get_memory(context)
    for begin in range(0, depth, tokens):
        for i in range(tokens):
            struct.pack_into("<i", block, offset + 12 * i, begin + i)
        if lc.llama_state_seq_set_data(context, block, len(block), _BLOCK_SEQUENCE) == 0:
            raise SystemExit(f"llama.cpp refuses the block at position {begin}")
        lc.llama_memory_seq_cp(memory, _BLOCK_SEQUENCE, 0, begin, begin + tokens)
        lc.llama_memory_seq_rm(memory, _BLOCK_SEQUENCE, -1, -1)
    first, last = (lc.llama_memory_seq_pos_min(memory, 0), lc.llama_memory_seq_pos_max(memory, 0))
    if (first, last) != (0, depth - 1):
        raise SystemExit(f"expected positions 0 to {depth - 1} in the cache, got {first} to {last}")


def decode(runner):
    request = runner.request
    depth, steps, repeat = request["depth"], request.get("steps", 32), request.get("repeat", 3)
    copied = request.get("fill", 0)
    # Without flash attention the scores of a whole micro-batch are kept, so a deep context that
    # only decodes gets a small one.
    context = runner.open(depth + steps * repeat + 2, 8 if copied else request.get("ubatch", 512))
    if copied:
        fill(runner, context, depth, copied)
    else:
        runner.feed(context, depth, 0)
    runner.feed(context, 1, depth)
    position, rates, fastest = depth + 1, [], 0.0
    for _ in range(repeat):
        ends = [time.perf_counter()]
        for _ in range(steps):
            runner.feed(context, 1, position)
            position += 1
            ends.append(time.perf_counter())
        rates.append(steps / (ends[-1] - ends[0]))
        fastest = max(fastest, 1 / min(end - start for start, end in zip(ends, ends[1:])))
    return {"rates": rates, "fastest_step": fastest}


def resident_bytes():
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * 4096
    except OSError:
        return None


def main():
    request = json.loads(sys.argv[1])
    callback = log_quietly()
    runner = Runner(request)
    result = {"prefill": prefill, "decode": decode}[request["task"]](runner)
    result |= {"tokens_per_second": statistics.median(result["rates"]),
               "resident_bytes": resident_bytes(), "llama_cpp_python": lc.__version__}
    print(json.dumps(result))
    del callback


if __name__ == "__main__":
    main()
