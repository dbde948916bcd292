"""The small models whose logits are frozen under tests/golden/models."""

from dataclasses import dataclass, field

from recipe import TensorRecipe, linear_scale, short_float


@dataclass(frozen=True)
class Case:
    name: str
    config: dict  # as in a published config.json, without the dtype
    tensors: list
    length: int  # tokens
    positions: list  # whose logits are stored
    prefill: int  # tokens of the prompt in the prefill-then-decode runs
    notes: str = ""
    window: int = 0

    @property
    def family(self):
        return self.config["model_type"]


@dataclass
class Builder:
    """Collects tensor recipes with scales that keep activations near unit variance."""

    tensors: list = field(default_factory=list)

    def add(self, name, shape, scale, offset=0.0):
        self.tensors.append(TensorRecipe(name, tuple(shape), short_float(scale), offset))

    def linear(self, name, fan_out, fan_in, gain=1.0):
        self.add(f"{name}.weight", (fan_out, fan_in), linear_scale(fan_in, gain))

    def norm(self, name, size):
        self.add(f"{name}.weight", (size,), 0.3, 1.0)

    def mlp(self, name, hidden, intermediate, gain):
        self.linear(f"{name}.gate_proj", intermediate, hidden, 1.2)
        self.linear(f"{name}.up_proj", intermediate, hidden, 1.0)
        self.linear(f"{name}.down_proj", hidden, intermediate, gain)

    def qkv(self, name, hidden, heads, kv_heads, head_dim, bias, qk_gain=1.0):
        for part, count, gain in (("q", heads, qk_gain), ("k", kv_heads, qk_gain),
                                  ("v", kv_heads, 1.0)):
            self.linear(f"{name}.{part}_proj", count * head_dim, hidden, gain)
            if bias:
                self.add(f"{name}.{part}_proj.bias", (count * head_dim,), 0.5, 0.1)


def gla_swa(name, *, heads, kv_heads, head_dim, layers, intermediate, window, vocab, length,
            tied=False, theta=1e6, eps=1e-6, attn_layers=None, gate=(16.0, -12.0), notes="",
            build=None, full_gate=False):
    """`gate` is the half-width and the center of the gate bias z; log decay = logsigmoid(z) / 16."""
    hidden = heads * head_dim
    kv_dim = kv_heads * head_dim
    depth_gain = layers**-0.5
    build = build or Builder()
    build.add("model.embeddings.weight", (vocab, hidden), 0.6 if tied else 1.7)
    for layer in range(layers):
        block = f"model.layers.{layer}"
        build.norm(f"{block}.attn_norm", hidden)
        build.qkv(f"{block}.attn", hidden, heads, kv_heads, head_dim, bias=True, qk_gain=0.9)
        if layer not in (attn_layers if attn_layers is not None else range(1, layers, 2)):
            if full_gate:
                build.linear(f"{block}.attn.gk_proj", kv_dim, hidden, 2.0)
                build.add(f"{block}.attn.gk_proj.bias", (kv_dim,), *gate)
            else:
                build.linear(f"{block}.attn.gk_proj.0", 16, hidden)
                build.linear(f"{block}.attn.gk_proj.1", kv_dim, 16, 2.0)
                build.add(f"{block}.attn.gk_proj.1.bias", (kv_dim,), *gate)
            build.norm(f"{block}.attn.g_norm", head_dim)
            build.linear(f"{block}.attn.o_proj", hidden, hidden, 0.5 * depth_gain)
        else:
            build.linear(f"{block}.attn.o_proj", hidden, hidden, 0.8 * depth_gain)
        build.norm(f"{block}.mlp_norm", hidden)
        build.mlp(f"{block}.mlp", hidden, intermediate, 0.5 * depth_gain)
    build.norm("model.norm", hidden)
    if not tied:
        build.linear("lm_head", vocab, hidden, 2.0)
    config = {
        "architectures": ["GLAswaForCausalLM"], "model_type": "gla_swa", "attn_mode": "chunk",
        "hidden_size": hidden, "intermediate_size": intermediate, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": kv_heads, "sliding_window": window,
        "rope_theta": theta, "norm_eps": eps, "vocab_size": vocab, "tie_word_embeddings": tied,
        "hidden_act": "swish", "use_short_conv": False, "conv_size": 4, "elementwise_affine": True,
        "max_position_embeddings": 4096, "bos_token_id": 1, "eos_token_id": 2,
    }
    if attn_layers is not None:
        config["attn_layers"] = attn_layers
    positions = sorted({0, 1, window - 2, window - 1, window, window + 1, 2 * window + 3,
                        length - 2, length - 1})
    return Case(name, config, build.tensors, length, positions, window + 5, notes, window)


def transformer(name, family, *, heads, kv_heads, head_dim, layers, intermediate, vocab, length,
                tied=False, theta=10000.0, eps=1e-5, rope_scaling=None, notes=""):
    hidden = heads * head_dim
    depth_gain = layers**-0.5
    build = Builder()
    build.add("model.embed_tokens.weight", (vocab, hidden), 0.6 if tied else 1.7)
    for layer in range(layers):
        block = f"model.layers.{layer}"
        build.norm(f"{block}.input_layernorm", hidden)
        build.qkv(f"{block}.self_attn", hidden, heads, kv_heads, head_dim, bias=family == "qwen2",
                  qk_gain=0.9)
        build.linear(f"{block}.self_attn.o_proj", hidden, hidden, 0.8 * depth_gain)
        build.norm(f"{block}.post_attention_layernorm", hidden)
        build.mlp(f"{block}.mlp", hidden, intermediate, 0.5 * depth_gain)
    build.norm("model.norm", hidden)
    if not tied:
        build.linear("lm_head", vocab, hidden, 2.0)
    config = {
        "architectures": ["LlamaForCausalLM" if family == "llama" else "Qwen2ForCausalLM"],
        "model_type": family, "hidden_size": hidden, "intermediate_size": intermediate,
        "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": kv_heads,
        "rope_theta": theta, "rms_norm_eps": eps, "vocab_size": vocab, "tie_word_embeddings": tied,
        "hidden_act": "silu", "max_position_embeddings": 4096, "bos_token_id": 1, "eos_token_id": 2,
    }
    if family == "llama":
        config |= {"head_dim": head_dim, "attention_bias": False, "mlp_bias": False,
                   "rope_scaling": rope_scaling}
    else:
        config |= {"use_sliding_window": False, "sliding_window": 4096, "max_window_layers": layers}
    positions = sorted({0, 1, 2, 15, 16, 17, 63, 64, length - 1})
    return Case(name, config, build.tensors, length, positions, length - 24, notes)


def all_cases():
    return [
        gla_swa("gla_swa_g1_d64", heads=4, kv_heads=4, head_dim=64, layers=3, intermediate=160,
                window=16, vocab=256, length=75),
        gla_swa("gla_swa_g2_d64_tied", heads=4, kv_heads=2, head_dim=64, layers=3, intermediate=192,
                window=24, vocab=320, length=97, tied=True),
        gla_swa("gla_swa_g7_d64", heads=7, kv_heads=1, head_dim=64, layers=2, intermediate=224,
                window=16, vocab=256, length=150, gate=(26.0, -22.0),
                notes="strong gates: log decay down to -3 and below"),
        gla_swa("gla_swa_g1_d128", heads=2, kv_heads=2, head_dim=128, layers=3, intermediate=128,
                window=24, vocab=512, length=77, theta=1e4, eps=1e-5),
        gla_swa("gla_swa_g2_d128_tied", heads=4, kv_heads=2, head_dim=128, layers=2,
                intermediate=160, window=16, vocab=256, length=83, tied=True),
        gla_swa("gla_swa_g7_d128", heads=7, kv_heads=1, head_dim=128, layers=2, intermediate=192,
                window=24, vocab=288, length=140, notes="the published 7B, narrowed to one group"),
        gla_swa("gla_swa_layers_given", heads=6, kv_heads=2, head_dim=64, layers=4,
                intermediate=224, window=16, vocab=256, length=69, attn_layers=[0, 3],
                gate=(3.0, 4.0), notes="attn_layers given, window first; gates that barely decay"),
        transformer("llama", "llama", heads=9, kv_heads=3, head_dim=64, layers=2, intermediate=192,
                    vocab=256, length=96),
        transformer("llama3_scaled_tied", "llama", heads=8, kv_heads=2, head_dim=64, layers=2,
                    intermediate=288, vocab=384, length=130, tied=True, theta=500000.0,
                    rope_scaling={"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                                  "high_freq_factor": 4.0, "original_max_position_embeddings": 64},
                    notes="all three bands of llama3 scaling hold frequencies"),
        transformer("qwen2", "qwen2", heads=7, kv_heads=1, head_dim=64, layers=2, intermediate=192,
                    vocab=256, length=96, theta=1e6, eps=1e-6),
        transformer("qwen2_tied_d128", "qwen2", heads=4, kv_heads=4, head_dim=128, layers=2,
                    intermediate=160, vocab=320, length=80, theta=1e6, eps=1e-6, tied=True),
    ]
