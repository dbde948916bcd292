"""Freezes small random W8ASpike models: see README.md beside this file.

  python spiking_models.py --reference CHECKOUT_OF_SPIKINGBRAIN_7B --out tests/golden/spiking
"""

import argparse
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import save_file

from gla_swa_reference import FlashWindow, import_modeling
from models import compact, relative_difference
from recipe import make_tensor
from spiking import import_reference
from spiking_cases import all_cases, spiking

# Quotients keep this far from n + 1/2, relative to max(1.5, |quotient|): several times what another
# order of summation does to an activation, so that it flips no count.
MARGIN = 1.5e-6

CODE_ROWS = 32  # rows of a matrix whose codes are stored; the special ones are among them


class Recorder:
    """Sees every rounding of activations: margins to the nearest tie, counts and thresholds."""

    def __init__(self, modules):
        self._modules = modules
        self._module = ""
        self.clear()

    def clear(self):
        self.margin = float("inf")
        self.fired = {}  # (layer, site): (counts, thresholds), rows in the order of the tokens
        self.largest = 0

    def watch(self, model):
        for name, module in model.named_modules():
            if name.endswith(("_proj", ".attn")):
                module.register_forward_pre_hook(lambda *_, name=name: self._enter(name))

    def _enter(self, name):
        self._module = name

    def _near_tie(self, quotient):
        quotient = quotient.double().abs()
        distance = (quotient - quotient.floor() - 0.5).abs() / quotient.clamp(min=1.5)
        self.margin = min(self.margin, float(distance.min()))

    def _fire(self, original, site, x, k=3.0):
        counts, threshold = original(x, k)
        self._near_tie(x / threshold)
        self.largest = max(self.largest, int(counts.abs().max()))
        layer, name = self._module.split(".")[2:4] if "." in self._module else ("", "")
        part = self._module.rsplit(".", 1)[-1]
        place = site or {"o_proj": "mixer_out", "down_proj": "ffn_out"}.get(
            part, "mixer_in" if name == "attn" else "ffn_in")
        rows = counts.flatten(0, -2).to(torch.int32), threshold.float().flatten()
        self.fired.setdefault((int(layer), place), rows)
        return counts, threshold

    def _quantize(self, original, x, bit=8):
        scale = (x.abs().amax([-1], keepdim=True).float() / 127).clamp(min=1e-5, max=1e4)
        self._near_tie(x / scale)
        return original(x, bit)

    @contextmanager
    def installed(self):
        quant, window = self._modules
        originals = quant.dynamic_spikes, window.dynamic_spikes, window.quantize_sym
        quant.dynamic_spikes = lambda x, k=3.0: self._fire(originals[0], None, x, k)
        window.dynamic_spikes = lambda x, k=3.0: self._fire(originals[1], "query", x, k)
        window.quantize_sym = lambda x, bit=8: self._quantize(originals[2], x, bit)
        try:
            yield
        finally:
            quant.dynamic_spikes, window.dynamic_spikes, window.quantize_sym = originals


class FixedWeight(torch.nn.Module):
    """What a quantizer made of a weight in the dtype that the model was loaded in."""

    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, _):
        return self.value


class SpikingOracle:
    """`load` is the dtype of the checkpoint in memory, on which codes depend; `compute` that of
    activations. `spiking_down` sends the inputs of down projections through their quantised layer
    as well, which the published code has but does not call."""

    def __init__(self, case, load, compute, reference, spiking_down=False):
        modeling, self.recorder = reference
        self._new_cache = modeling.Cache
        self.model = modeling.GLAswaForCausalLM(modeling.GLAswaConfig(**case.config)).eval()
        self._assign(case, load)
        if compute != load:
            self._freeze_codes(load, compute)
        if spiking_down:
            for layer in self.model.model.layers:
                layer.mlp.forward = self._spiking_network(layer.mlp)
        self.recorder.watch(self.model)

    def _assign(self, case, dtype):
        slots = dict(self.model.named_parameters())
        slots |= {n: b for n, b in self.model.named_buffers() if n.endswith(".scales")}
        given = {recipe.name: recipe.shape for recipe in case.tensors}
        expected = {name: tuple(slot.shape) for name, slot in slots.items()}
        if given != expected:
            raise SystemExit(f"{case.name}: tensors differ: {expected.items() ^ given.items()}")
        for recipe in case.tensors:
            slots[recipe.name].data = make_tensor(recipe).to(dtype)

    def quantized(self):
        for name, module in self.model.named_modules():
            if hasattr(module, "weight_quantizer"):
                yield name, module

    def codes(self, name):
        layer = dict(self.quantized())[name]
        scales = layer.weight_quantizer.scales
        grouped = layer.weight.detach().reshape(layer.out_features, -1, layer.w_group_size)
        codes = (grouped / scales).round()
        values = (codes * scales).reshape(layer.weight.shape).to(layer.weight.dtype)
        if not torch.equal(values, layer.weight_quantizer(layer.weight)):
            raise SystemExit(f"{name}: codes do not give the reference's weights")
        return codes.reshape(layer.weight.shape).to(torch.int32)

    def _freeze_codes(self, load, compute):
        for _, layer in self.quantized():
            value = layer.weight_quantizer(layer.weight).detach()
            layer.weight_quantizer = FixedWeight(value.to(compute))
        for parameter in self.model.parameters():
            parameter.data = parameter.data.to(compute)

    @staticmethod
    def _spiking_network(mlp):
        def forward(x):
            gate, up = mlp.gate_proj(x), mlp.up_proj(x)
            wide = gate if gate.dtype == torch.float64 else gate.float()
            return mlp.down_proj((torch.nn.functional.silu(wide) * up.to(wide.dtype)).to(x.dtype))
        return forward

    @torch.no_grad()
    def logits(self, tokens, prefill=None):
        FlashWindow.extra_key = prefill is not None
        prefill = len(tokens) if prefill is None else prefill
        ids = torch.tensor([tokens])
        self.recorder.clear()
        with self.recorder.installed():
            out = self.model(ids[:, :prefill], past_key_values=self._new_cache(), use_cache=True)
            rows = [out.logits[0]]
            for t in range(prefill, len(tokens)):
                out = self.model(ids[:, t:t + 1], past_key_values=out.past_key_values,
                                 use_cache=True)
                rows.append(out.logits[0])
        return torch.cat(rows)


# Stored runs: load dtype, whether down projections take spikes.
EXACT_RUNS = {"f32.reference": (torch.float32, False), "f32.report": (torch.float32, True),
              "bf16.exact": (torch.bfloat16, False)}


def find_salt(name, sizes, reference):
    for salt in range(1000):
        case, tokens = spiking(name, salt, **sizes)
        runs = {}
        for run, (load, down) in EXACT_RUNS.items():
            oracle = SpikingOracle(case, load, torch.float64, reference, down)
            runs[run] = oracle.logits(tokens)
            recorder = oracle.recorder
            if recorder.margin < MARGIN:
                break
            if run == "f32.reference":
                fired = dict(recorder.fired)
        else:
            print(f"{name}: salt {salt}")
            return case, tokens, runs, fired
    raise SystemExit(f"{name}: no tokens keep away from ties")


def check_truth(case, tokens, truth, reference):
    """The same model in its own dtype, through the cache, and with the spike coding."""
    narrow = SpikingOracle(case, torch.float32, torch.float32, reference)
    difference = relative_difference(narrow.logits(tokens), truth)
    print(f"  float32 against float64: {difference:.1e}; counts up to {narrow.recorder.largest}")
    if difference > 4e-6:
        raise SystemExit(f"{case.name}: float32 is off by {difference}")
    if narrow.recorder.largest <= 127:
        raise SystemExit(f"{case.name}: no count leaves int8")
    exact = SpikingOracle(case, torch.float32, torch.float64, reference)
    stepwise = relative_difference(exact.logits(tokens, 1), truth)
    if stepwise > 1e-6:
        raise SystemExit(f"{case.name}: decode differs from prefill by {stepwise}")


def check_coding(case, tokens, reference, quant_linear):
    """Encoding counts as spike trains and decoding them changes no bit, or is refused."""
    plain = SpikingOracle(case, torch.float32, torch.float32, reference).logits(tokens)
    quant_linear.spike_is_available = True
    try:
        coded = SpikingOracle(case, torch.float32, torch.float32, reference).logits(tokens)
        print("  with the spike coding: the same bits" if torch.equal(plain, coded) else "  DIFFERS")
        if not torch.equal(plain, coded):
            raise SystemExit(f"{case.name}: the spike coding changes logits")
    except ValueError as error:
        print(f"  with the spike coding: {error}")
    finally:
        quant_linear.spike_is_available = False


def count_tensors(fired, case):
    """Rows of the stored positions; queries have one row for each head."""
    stored = {}
    for (layer, site), (counts, thresholds) in fired.items():
        heads = case.config["num_attention_heads"] if site == "query" else 1
        rows = [p * heads + h for p in case.positions for h in range(heads)]
        stored[f"counts.{layer}.{site}"] = counts[rows].contiguous()
        stored[f"thresholds.{layer}.{site}"] = thresholds[rows].contiguous()
    return stored


def freeze(name, sizes, reference, quant_linear, out):
    case, tokens, exact, fired = find_salt(name, sizes, reference)
    check_truth(case, tokens, exact["f32.reference"], reference)
    check_coding(case, tokens, reference, quant_linear)
    rounded = SpikingOracle(case, torch.bfloat16, torch.bfloat16, reference)
    exact["bf16.reference"] = rounded.logits(tokens)
    for run in ("f32.report", "bf16.exact"):
        change = relative_difference(exact[run], exact["f32.reference"])
        print(f"  {run} against f32.reference: {change:.1e}")
    change = relative_difference(exact["bf16.reference"], exact["bf16.exact"])
    print(f"  bfloat16 against float64 on the same weights: {change:.1e}")
    stored = {run: logits[case.positions].to(torch.bfloat16 if run == "bf16.reference"
                                             else torch.float32) for run, logits in exact.items()}
    if name in ("linear_g1_d64", "hybrid_g2_d64"):
        stored |= count_tensors(fired, case)
    beyond = total = 0
    loaded = SpikingOracle(case, torch.float32, torch.float32, reference)
    for matrix, layer in loaded.quantized():
        codes = loaded.codes(matrix)
        beyond += int(((codes < -128) | (codes > 127)).sum())
        total += codes.numel()
    print(f"  {100 * beyond / total:.2f} % of codes beyond int8")
    if name == "linear_g2_d128":
        matrix = "model.layers.1.attn.k_proj"
        stored[f"codes.f32.{matrix}"] = loaded.codes(matrix)[:CODE_ROWS].contiguous()
        stored[f"codes.bf16.{matrix}"] = rounded.codes(matrix)[:CODE_ROWS].contiguous()
    document = {"name": name, "config": case.config, "prefill": case.prefill,
                "tokens": tokens,
                "runs": [{"tensor": run, "positions": case.positions} for run in exact],
                "tensors": [recipe.as_json() for recipe in case.tensors]}
    (out / f"{name}.json").write_text(compact(document))
    file = out / f"{name}.safetensors"
    save_file(stored, str(file))
    file.chmod(0o644)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--reference", required=True, help="checkout of BICLab/SpikingBrain-7B")
    parser.add_argument("--out", default="tests/golden/spiking", type=Path)
    parser.add_argument("--only", help="name of one case")
    args = parser.parse_args()
    torch.manual_seed(0)
    quant_linear, _ = import_reference(args.reference)
    quant_linear.spike_is_available = False  # see check_coding
    modeling = import_modeling(args.reference, "W8ASpike")
    window = __import__("sys").modules["W8ASpike.window_attention"]
    reference = modeling, Recorder((quant_linear, window))
    args.out.mkdir(parents=True, exist_ok=True)
    for name, sizes in all_cases():
        if args.only in (None, name):
            freeze(name, sizes, reference, quant_linear, args.out)
    total = sum(file.stat().st_size for file in args.out.iterdir())
    print(f"{total / 2**20:.2f} MiB in {args.out}")


if __name__ == "__main__":
    main()
