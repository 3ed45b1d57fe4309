"""Qwen2.5-VL in packed form: all patches and all tokens of a batch in one row each, attention over segments.

Parameter names are the published checkpoint's. Weights live in float32; `dtype` is the dtype of the computation.
A batch is made by batches.collate.
"""

import torch
import torch.nn.functional as F
from torch import nn

from layers import MLP, Linear, RMSNorm, attend, initialise

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


def rotate(x, cos, sin):
    """Half-split rotary embedding. x [N, H, D]; cos, sin [N, 1, D / 2]."""
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


class VisionAttention(nn.Module):
    def __init__(self, size, heads):
        super().__init__()
        self.heads = heads
        self.qkv = Linear(size, 3 * size, True)
        self.proj = Linear(size, size, True)

    def forward(self, x, cos, sin, segments):
        q, k, v = self.qkv(x).view(len(x), 3, self.heads, -1).unbind(1)
        q, k = (rotate(t.to(cos.dtype), cos, sin).to(x.dtype) for t in (q, k))
        return self.proj(attend(q, k, v, segments, False).reshape(len(x), -1))


class VisionBlock(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.norm1 = RMSNorm(c["hidden_size"])
        self.norm2 = RMSNorm(c["hidden_size"])
        self.attn = VisionAttention(c["hidden_size"], c["num_heads"])
        self.mlp = MLP(c["hidden_size"], c["intermediate_size"], True)

    def forward(self, x, cos, sin, segments):
        x = x + self.attn(self.norm1(x), cos, sin, segments)
        return x + self.mlp(self.norm2(x))


class PatchEmbed(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.proj = nn.Module()
        self.proj.weight = nn.Parameter(torch.empty(c["hidden_size"], 3, 2, 14, 14))
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1) * 255, persistent=False)

    def forward(self, first, second, dtype):
        """first, second [N, 588] uint8: the two frames of each patch."""
        frames = [((x.view(-1, 3, 14, 14).float() - self.mean) / self.std).to(dtype) for x in (first, second)]
        return F.linear(torch.stack(frames, 2).flatten(1), self.proj.weight.flatten(1).to(dtype))


class Merger(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.wide = 4 * c["hidden_size"]
        self.ln_q = RMSNorm(c["hidden_size"])
        self.mlp = nn.ModuleList(
            [Linear(self.wide, self.wide, True), nn.Identity(), Linear(self.wide, c["out_hidden_size"], True)]
        )

    def forward(self, x):
        return self.mlp[2](F.gelu(self.mlp[0](self.ln_q(x).view(-1, self.wide))))


class Vision(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.full = set(c["fullatt_block_indexes"])
        self.patch_embed = PatchEmbed(c)
        self.blocks = nn.ModuleList([VisionBlock(c) for _ in range(c["depth"])])
        self.merger = Merger(c)
        dim = c["hidden_size"] // c["num_heads"] // 2
        self.register_buffer("inv_freq", 1.0 / 10000.0 ** (torch.arange(0, dim, 2).float() / dim), persistent=False)

    def forward(self, batch, dtype):
        """Embeddings [merged units, hidden] in window order, the order in which patches come."""
        pixels = batch["pixels"]
        x = self.patch_embed(pixels.index_select(0, batch["first"]), pixels.index_select(0, batch["second"]), dtype)
        angles = (batch["coords"].float()[:, :, None] * self.inv_freq).flatten(1)[:, None]
        cos, sin = angles.cos(), angles.sin()
        if self.training:  # cheaper; inference rotates in float32, as transformers does
            cos, sin = cos.to(dtype), sin.to(dtype)
        for i, block in enumerate(self.blocks):
            x = block(x, cos, sin, batch["frames"] if i in self.full else batch["windows"])
        return self.merger(x)


class Attention(nn.Module):
    def __init__(self, c):
        super().__init__()
        size, self.heads, self.kv = c["hidden_size"], c["num_attention_heads"], c["num_key_value_heads"]
        self.dim = size // self.heads
        self.q_proj = Linear(size, size, True)
        self.k_proj = Linear(size, self.kv * self.dim, True)
        self.v_proj = Linear(size, self.kv * self.dim, True)
        self.o_proj = Linear(size, size, False)

    def forward(self, x, cos, sin, segments):
        q = rotate(self.q_proj(x).view(len(x), self.heads, self.dim), cos, sin)
        k = rotate(self.k_proj(x).view(len(x), self.kv, self.dim), cos, sin)
        v = self.v_proj(x).view(len(x), self.kv, self.dim)
        k, v = (t.repeat_interleave(self.heads // self.kv, 1) for t in (k, v))
        return self.o_proj(attend(q, k, v, segments, True).reshape(len(x), -1))


class Layer(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.input_layernorm = RMSNorm(c["hidden_size"], c["rms_norm_eps"])
        self.self_attn = Attention(c)
        self.post_attention_layernorm = RMSNorm(c["hidden_size"], c["rms_norm_eps"])
        self.mlp = MLP(c["hidden_size"], c["intermediate_size"], False)

    def forward(self, x, cos, sin, segments):
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, segments)
        return x + self.mlp(self.post_attention_layernorm(x))


class Text(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.embed_tokens = nn.Embedding(c["vocab_size"], c["hidden_size"])
        self.layers = nn.ModuleList([Layer(c) for _ in range(c["num_hidden_layers"])])
        self.norm = RMSNorm(c["hidden_size"], c["rms_norm_eps"])
        dim = c["hidden_size"] // c["num_attention_heads"]
        self.register_buffer(
            "inv_freq", 1.0 / c["rope_theta"] ** (torch.arange(0, dim, 2).float() / dim), persistent=False
        )
        stream = torch.repeat_interleave(torch.arange(3), torch.tensor(c["rope_scaling"]["mrope_section"]))
        self.register_buffer("stream", stream, persistent=False)

    def forward(self, x, positions, segments):
        """x [N, hidden], positions [3, N]."""
        angles = (positions[self.stream].float().T * self.inv_freq)[:, None]
        cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        for layer in self.layers:
            x = layer(x, cos, sin, segments)
        return self.norm(x)


class Model(nn.Module):
    COMPILED = (VisionBlock, Layer)
    penalty = 0.0  # beside the loss of the answers

    def __init__(self, config):
        super().__init__()
        self.visual = Vision(config["vision_config"])
        self.model = Text(config)
        initialise(self, quiet=("o_proj.weight", "down_proj.weight", "attn.proj.weight"))

    def embed(self, batch, dtype):
        x = self.model.embed_tokens.weight.to(dtype).index_select(0, batch["ids"])
        if len(batch["first"]):
            x = torch.where(batch["hole"], self.visual(batch, dtype).index_select(0, batch["unit"]), x)
        return x

    def logits(self, x):
        return F.linear(x, self.model.embed_tokens.weight.to(x.dtype))

    def forward(self, batch, dtype=torch.bfloat16):
        """Logits at the positions batch['asked']."""
        x = self.model(self.embed(batch, dtype), batch["positions"], batch["sequences"])
        return self.logits(x.index_select(0, batch["asked"]))

    def published(self):
        """Tensors by the names of a checkpoint."""
        return self.state_dict()

    def load_published(self, tensors):
        self.load_state_dict(tensors)
