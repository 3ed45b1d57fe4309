"""Parts that both models share. Weights live in float32; the dtype of the computation is that of the input."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention.varlen import varlen_attn


class Linear(nn.Module):
    def __init__(self, inputs, outputs, bias):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None

    def forward(self, x):
        return F.linear(x, self.weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype))


class RMSNorm(nn.Module):
    def __init__(self, size, eps=1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x):
        return F.rms_norm(x, (x.shape[-1],), self.weight.to(x.dtype), self.eps)


class MLP(nn.Module):
    def __init__(self, size, inner, bias):
        super().__init__()
        self.gate_proj = Linear(size, inner, bias)
        self.up_proj = Linear(size, inner, bias)
        self.down_proj = Linear(inner, size, bias)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


def attend(q, k, v, segments, causal):
    """q, k, v [N, H, D]; segments: (cumulative lengths int32 on the device, longest, lengths on the host)."""
    ends, longest, lengths = segments
    if q.is_cuda and q.dtype in (torch.bfloat16, torch.float16):
        return varlen_attn(q, k, v, ends, ends, longest, longest, window_size=(-1, 0) if causal else (-1, -1))
    out = []
    for part in zip(*(x.transpose(0, 1).split(lengths, 1) for x in (q, k, v))):
        out.append(F.scaled_dot_product_attention(*(x[None] for x in part), is_causal=causal)[0])
    return torch.cat(out, 1).transpose(0, 1)


def initialise(model, quiet):
    """Normal weights of variance 1 / inputs; embeddings 0.02; matrices whose name ends as in `quiet` 0.3 of that."""
    for name, p in model.named_parameters():
        if p.ndim > 1:
            fan = p[0].numel()
            std = 0.02 if "embed_tokens" in name else fan**-0.5
            if name.endswith(quiet):
                std *= 0.3
            nn.init.normal_(p, std=std)
