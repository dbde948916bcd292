"""Imports the modeling code of the public SpikingBrain-7B repository and runs it on a CPU.

The checkout is an oracle: nothing of it is copied. Its GPU-only dependencies are replaced before the
import by plain PyTorch with the same meaning:
  fla.ops.gla.*           -> the recurrence, token by token, state in float32 (float64 for float64)
  fla.modules.RMSNorm     -> statistics in float32 (float64 for float64), optional fused residual
  flash_attn.*            -> masked softmax; window_size (w, 0) lets a query see w + 1 keys
  PreTrainedModel, ...    -> bare containers, so that any recent transformers release serves
"""

import importlib
import sys
import types
from pathlib import Path

import torch
from torch import nn


def _wide(x: torch.Tensor) -> torch.Tensor:
    return x if x.dtype == torch.float64 else x.float()


class PlainRMSNorm(nn.Module):
    def __init__(self, hidden_size, elementwise_affine=True, bias=False, eps=1e-5):
        super().__init__()
        if bias or not elementwise_affine:
            raise NotImplementedError("RMSNorm: expected a weight and no bias")
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(hidden_size))

    def forward(self, x, residual=None, prenorm=False):
        total = _wide(x) if residual is None else _wide(x) + _wide(residual)
        inverse_rms = torch.rsqrt(total.square().mean(-1, keepdim=True) + self.eps)
        y = (total * inverse_rms * _wide(self.weight)).to(x.dtype)
        return (y, total.to(x.dtype)) if prenorm else y


def plain_gla(q, k, v, gk, scale=None, initial_state=None, output_final_state=False, **_):
    """Tensors are [batch, heads, positions, channels]."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    qs, ks, vs, gs = (_wide(x) for x in (q, k, v, gk))
    shape = (*q.shape[:2], q.shape[-1], v.shape[-1])
    state = qs.new_zeros(shape) if initial_state is None else initial_state.to(qs.dtype)
    outputs = []
    for t in range(q.shape[2]):
        decay = gs[:, :, t].exp().unsqueeze(-1)
        state = decay * state + ks[:, :, t].unsqueeze(-1) * vs[:, :, t].unsqueeze(-2)
        outputs.append(torch.einsum("bhk,bhkv->bhv", qs[:, :, t] * scale, state))
    o = torch.stack(outputs, dim=2).to(v.dtype)
    return o, (state if output_final_state else None)


class FlashWindow:
    """The two flash_attn entry points. `extra_key` False hides the oldest key of the window, so that
    a query sees exactly `window` keys including its own."""

    extra_key = True

    @classmethod
    def _attend(cls, q, k, v, softmax_scale, window_size):
        """q [Lq, H, D], k and v [Lk, H, D]; the last query stands at the last key."""
        reach = window_size[0] if cls.extra_key else window_size[0] - 1
        scores = torch.einsum("qhd,khd->hqk", _wide(q), _wide(k)) * softmax_scale
        query = torch.arange(q.shape[0])[:, None] + k.shape[0] - q.shape[0]
        key = torch.arange(k.shape[0])[None, :]
        visible = (key <= query) & (key >= query - reach)
        weights = scores.masked_fill(~visible, float("-inf")).softmax(-1)
        return torch.einsum("hqk,khd->qhd", weights, _wide(v)).to(q.dtype)

    @classmethod
    def varlen(cls, q, k, v, cu_seqlens_q, cu_seqlens_k, softmax_scale, window_size, **_):
        if len(cu_seqlens_q) != 2:
            raise NotImplementedError("flash_attn: expected one sequence")
        return cls._attend(q, k, v, softmax_scale, window_size)


def _unpad(x, mask, *_):
    indices = torch.nonzero(mask.flatten()).flatten()
    lengths = mask.sum(-1).to(torch.int32)
    ends = nn.functional.pad(lengths.cumsum(0).to(torch.int32), (1, 0))
    return x.flatten(0, 1)[indices], indices, ends, int(lengths.max()), lengths


def _pad(x, indices, batch, length):
    out = x.new_zeros((batch * length, *x.shape[1:]))
    out[indices] = x
    return out.reshape(batch, length, *x.shape[1:])


class PlainConfig:
    use_return_dict = True
    output_attentions = False
    output_hidden_states = False

    def __init__(self, **kwargs):
        for key, value in kwargs.items():
            setattr(self, key, value)


class PlainPreTrainedModel(nn.Module):
    def __init__(self, config, *_, **__):
        super().__init__()
        self.config = config

    def post_init(self):
        pass


class PlainCache:
    pass


def _refuse(*_, **__):
    raise NotImplementedError("this part of the reference is not used by inference")


def _install(name: str, **members):
    module = types.ModuleType(name)
    module.__dict__.update(members)
    sys.modules[name] = module


def load_reference(checkout: str):
    """Returns (config class, model class, cache class) of CHECKOUT/hf_7B_model."""
    modeling = import_modeling(checkout, "hf_7B_model")
    return modeling.GLAswaConfig, modeling.GLAswaForCausalLM, modeling.Cache


def _swiglu_linear(gate, up, weight, bias):
    """One rounding after the activation, as the fused kernel has it."""
    z = nn.functional.silu(_wide(gate)) * _wide(up)
    return nn.functional.linear(z.to(gate.dtype), weight, bias)


def _upad_input(q, k, v, mask, query_length, *_):
    """Of one sequence without padding, whose last query stands at the last key."""
    if q.shape[0] != 1 or q.shape[1] != query_length or not bool((mask != 0).all()):
        raise NotImplementedError("flash_attn: expected one sequence without padding")
    ends = [torch.tensor([0, x.shape[1]], dtype=torch.int32) for x in (q, k)]
    indices = torch.arange(query_length)
    return q[0], k[0], v[0], indices, tuple(ends), (q.shape[1], k.shape[1])


def import_modeling(checkout: str, package: str):
    """The module modeling_gla_swa of CHECKOUT/PACKAGE."""
    import transformers.cache_utils
    import transformers.configuration_utils
    import transformers.modeling_flash_attention_utils
    import transformers.modeling_utils
    import transformers.utils

    folder = Path(checkout) / package
    if not (folder / "modeling_gla_swa.py").is_file():
        raise SystemExit(f"{folder}: expected modeling_gla_swa.py of the reference repository")
    _install("fla")
    _install("fla.modules", RMSNorm=PlainRMSNorm, ShortConvolution=_refuse,
             FusedCrossEntropyLoss=_refuse)
    _install("fla.modules.activations", swish=nn.functional.silu)
    _install("fla.ops")
    _install("fla.ops.gla", chunk_gla=plain_gla, fused_chunk_gla=plain_gla,
             fused_recurrent_gla=plain_gla)
    _install("flash_attn")
    _install("flash_attn.flash_attn_interface", flash_attn_func=_refuse,
             flash_attn_varlen_func=FlashWindow.varlen)
    _install("flash_attn.bert_padding", pad_input=_pad, unpad_input=_unpad)
    _install(f"{package}.activations", swiglu_linear=_swiglu_linear)
    replaced = [
        (transformers.modeling_utils, "PreTrainedModel", PlainPreTrainedModel),
        (transformers.configuration_utils, "PretrainedConfig", PlainConfig),
        (transformers.cache_utils, "Cache", PlainCache),
        (transformers.utils, "is_flash_attn_2_available", lambda: True),
    ]
    if package == "W8ASpike":  # written for an older release, whose function took one argument less
        replaced.append((transformers.modeling_flash_attention_utils, "_upad_input", _upad_input))
    originals = [(module, key, getattr(module, key)) for module, key, _ in replaced]
    sys.path.insert(0, str(checkout))
    try:
        for module, key, value in replaced:
            setattr(module, key, value)
        modeling = importlib.import_module(f"{package}.modeling_gla_swa")
    finally:
        for module, key, value in originals:
            setattr(module, key, value)
        sys.path.pop(0)
    return modeling
