"""Freezes logits of small random models: see README.md beside this file.

  python models.py --reference CHECKOUT_OF_SPIKINGBRAIN_7B --out tests/golden/models
"""

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from cases import all_cases
from gla_swa_reference import FlashWindow, load_reference
from recipe import make_tensor, make_tokens

# What the stored truth may differ from the same model evaluated in its own dtype, relative to the
# largest |logit|: the budget of the C++ tests is 1e-5 and 1e-2.
_ALLOWED = {torch.float32: 4e-6, torch.bfloat16: 7e-3}


class Oracle:
    """One model in one dtype; `logits` runs a prompt and then single tokens through the cache."""

    def __init__(self, case, dtype, reference):
        self.case = case
        self.dtype = dtype
        self._new_cache = lambda: None
        weight_dtype = torch.float32 if dtype == torch.float64 else dtype
        if case.family == "gla_swa":
            config_class, model_class, cache_class = reference
            self.model = model_class(config_class(**case.config))
            self._new_cache = cache_class
        else:
            self.model = _transformers_model(case.config)
        self.model.eval()
        parameters = dict(self.model.named_parameters())
        self._check_names(parameters)
        for recipe in case.tensors:
            value = make_tensor(recipe).to(weight_dtype).to(dtype)
            parameters[recipe.name].data = value  # buffers keep float32, as when loading a file
        if case.config["tie_word_embeddings"]:
            self.model.get_output_embeddings().weight = self.model.get_input_embeddings().weight

    def _check_names(self, parameters):
        expected = {name: tuple(p.shape) for name, p in parameters.items()}
        if self.case.config["tie_word_embeddings"]:
            expected.pop("lm_head.weight", None)
        given = {recipe.name: recipe.shape for recipe in self.case.tensors}
        if expected != given:
            raise SystemExit(f"{self.case.name}: tensors differ: {expected.items() ^ given.items()}")

    @torch.no_grad()
    def logits(self, tokens, prefill, extra_key=False):
        FlashWindow.extra_key = extra_key
        ids = torch.tensor([tokens])
        out = self.model(ids[:, :prefill], past_key_values=self._new_cache(), use_cache=True)
        rows = [out.logits[0]]
        for t in range(prefill, len(tokens)):
            out = self.model(ids[:, t:t + 1], past_key_values=out.past_key_values, use_cache=True)
            rows.append(out.logits[0])
        return torch.cat(rows)


def _transformers_model(config):
    import transformers

    config = dict(config)
    model_class = getattr(transformers, config["architectures"][0])
    config_class = getattr(transformers, config["architectures"][0].removesuffix("ForCausalLM")
                           + "Config")
    return model_class._from_config(config_class(**config), attn_implementation="eager")


def relative_difference(a, b):
    a, b = a.double(), b.double()
    return float((a - b).abs().max() / b.abs().max())


def _expect(condition, message):
    if not condition:
        raise SystemExit(message)


def _runs(case, tokens, exact, narrow, half):
    """Yields (name, logits [tokens, vocab], dtype to store, positions, extra fields)."""
    whole = len(tokens)
    truth = exact.logits(tokens, whole)
    difference = relative_difference(narrow.logits(tokens, whole), truth)
    print(f"  float32 against float64: {difference:.1e}")
    _expect(difference < _ALLOWED[torch.float32], f"{case.name}: float32 is off by {difference}")
    stepwise = relative_difference(exact.logits(tokens, 1, extra_key=True), truth)
    _expect(stepwise < 1e-6, f"{case.name}: decode differs from prefill by {stepwise}")
    yield "f32.default", truth, torch.float32, case.positions, {}

    rounded = Oracle.logits(half, tokens, whole)
    yield "bf16.default", rounded, torch.bfloat16, case.positions, {}

    if case.window == 0:
        return
    late = [p for p in case.positions if p >= case.window - 1]
    inclusive = exact.logits(tokens, whole, extra_key=True)
    print(f"  one key more changes logits by {relative_difference(inclusive, truth):.1e}")
    yield "f32.inclusive_extra", inclusive, torch.float32, late, {"window_inclusive_extra": True}
    generated = exact.logits(tokens, case.prefill, extra_key=True)
    decoded = [p for p in case.positions if p >= case.prefill]
    yield ("f32.reference_generate", generated, torch.float32, decoded,
           {"prefill": case.prefill, "prefill_window_inclusive_extra": True})


def freeze(case, reference, out):
    print(case.name)
    tokens = make_tokens(case.name, case.length, case.config["vocab_size"])
    exact, narrow, half = (Oracle(case, dtype, reference)
                           for dtype in (torch.float64, torch.float32, torch.bfloat16))
    rounding = Oracle(case, torch.float64, reference)
    for parameter in rounding.model.parameters():
        parameter.data = parameter.data.bfloat16().double()
    stored, runs = {}, []
    for name, logits, dtype, positions, fields in _runs(case, tokens, exact, narrow, half):
        stored[name] = logits[positions].to(dtype).contiguous()
        runs.append({"tensor": name, "positions": positions, **fields})
    difference = relative_difference(stored["bf16.default"],
                                     rounding.logits(tokens, len(tokens))[case.positions])
    print(f"  bfloat16 against float64 on the same weights: {difference:.1e}")
    _expect(difference < _ALLOWED[torch.bfloat16], f"{case.name}: bfloat16 is off by {difference}")
    document = {"name": case.name, "notes": case.notes, "config": case.config,
                "prefill": case.prefill, "tokens": tokens, "runs": runs,
                "tensors": [recipe.as_json() for recipe in case.tensors]}
    (out / f"{case.name}.json").write_text(compact(document))
    weights = out / f"{case.name}.safetensors"
    save_file(stored, str(weights))
    weights.chmod(0o644)


def compact(document):
    """One line per entry of the top level, and per tensor."""
    lines = []
    for key, value in document.items():
        if key in ("tensors", "runs"):
            rows = ",\n".join("    " + json.dumps(row) for row in value)
            lines.append(f"  {json.dumps(key)}: [\n{rows}\n  ]")
        else:
            lines.append(f"  {json.dumps(key)}: {json.dumps(value)}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--reference", required=True, help="checkout of BICLab/SpikingBrain-7B")
    parser.add_argument("--out", default="tests/golden/models", type=Path)
    parser.add_argument("--only", help="name of one case")
    args = parser.parse_args()
    torch.manual_seed(0)
    reference = load_reference(args.reference)
    args.out.mkdir(parents=True, exist_ok=True)
    for case in all_cases():
        if args.only in (None, case.name):
            freeze(case, reference, args.out)
    total = sum(file.stat().st_size for file in args.out.iterdir())
    print(f"{total / 2**20:.2f} MiB in {args.out}")


if __name__ == "__main__":
    main()
