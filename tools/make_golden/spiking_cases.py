"""The small W8ASpike models whose logits are frozen under tests/golden/spiking."""

import math
from dataclasses import dataclass, replace

from cases import Builder, gla_swa
from recipe import make_tokens, short_float

GROUP = 128  # input channels that share a scale

# Rows of every projection that are special.
ZERO_ROW = 3
TIE_ROW = 5  # half of its quotients lie between two codes
FAR_ROW = 9  # codes of its first group reach beyond 500

# One token has a massive activation: counts beyond 127. Another is all zeros.
MASSIVE_CHANNEL = 70
MASSIVE = 90.0


@dataclass
class SpikingBuilder(Builder):
    """Adds the scales of projections: a few codes of every matrix leave int8."""

    def linear(self, name, fan_out, fan_in, gain=1.0):
        super().linear(name, fan_out, fan_in, gain)
        if not name.endswith("_proj"):
            return
        largest = self.tensors[-1].scale
        groups = fan_in // GROUP
        power = 2.0 ** round(math.log2(largest / 100))
        self._edit(("times", ZERO_ROW * fan_in, fan_in, 0.0),
                   ("grid", TIE_ROW * fan_in, fan_in, power / 2))
        self.add(f"{name}.weight_quantizer.scales", (fan_out, groups, 1), 0.08 * largest / 127,
                 short_float(1.05 * largest / 127))
        self._edit(("set", TIE_ROW * groups, groups, power), ("times", FAR_ROW * groups, 1, 0.25))

    def _edit(self, *edits):
        self.tensors[-1] = replace(self.tensors[-1], edits=edits)


def spiking(name, salt, *, length=25, window=8, vocab=256, **sizes):
    """`salt` chooses the tokens: such that no activation lies near a tie."""
    case = gla_swa(name, length=length, window=window, vocab=vocab, build=SpikingBuilder(),
                   full_gate=True, **sizes)
    tokens = make_tokens(f"{name} {salt}", length, vocab)
    hidden = case.config["hidden_size"]
    embeddings = replace(case.tensors[0], edits=(
        ("set", tokens[6] * hidden + MASSIVE_CHANNEL, 1, MASSIVE),
        ("set", tokens[7] * hidden, hidden, 0.0)))
    assert embeddings.name == "model.embeddings.weight"
    return replace(case, tensors=[embeddings, *case.tensors[1:]]), tokens


def all_cases():
    """(name, sizes)"""
    return [
        ("linear_g1_d64", {"heads": 4, "kv_heads": 4, "head_dim": 64, "layers": 2,
                           "intermediate": 256, "attn_layers": []}),
        ("linear_g2_d128", {"heads": 2, "kv_heads": 1, "head_dim": 128, "layers": 2,
                            "intermediate": 384, "attn_layers": []}),
        ("hybrid_g2_d64", {"heads": 4, "kv_heads": 2, "head_dim": 64, "layers": 3,
                           "intermediate": 256}),
        ("hybrid_g1_d128", {"heads": 2, "kv_heads": 2, "head_dim": 128, "layers": 2,
                            "intermediate": 256}),
    ]
