"""DeepSeek-VL2 in packed form: all tiles in one batch, all tokens in one row, attention over segments.

The attention is that of the expanded form (keys and values of every head are made from the latent), and the experts are
one wide MLP whose hidden units are weighted by the routing, zero for the experts not chosen: the same sums. Weights
live in float32; `dtype` is the dtype of the computation. A batch is made by batches.collate.
"""

import torch
import torch.nn.functional as F
from torch import nn

from layers import MLP, Linear, RMSNorm, attend, initialise

from .preprocess import DOWNSAMPLE, FEATURE, GRID, NEWLINE, SEPARATOR, SIDE

PATCHES = GRID * GRID
BALANCE = 0.01  # weight of the loss that keeps all experts in use


class LayerNorm(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.bias = nn.Parameter(torch.zeros(size))

    def forward(self, x):
        return F.layer_norm(x, (x.shape[-1],), self.weight.to(x.dtype), self.bias.to(x.dtype), 1e-6)


class VisionAttention(nn.Module):
    def __init__(self, size, heads):
        super().__init__()
        self.heads = heads
        self.qkv = Linear(size, 3 * size, True)
        self.proj = Linear(size, size, True)

    def forward(self, x):
        tiles, patches, width = x.shape
        q, k, v = self.qkv(x).view(tiles, patches, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        x = F.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 2).reshape(tiles, patches, width))


class VisionMLP(nn.Module):
    def __init__(self, size, inner):
        super().__init__()
        self.fc1 = Linear(size, inner, True)
        self.fc2 = Linear(inner, size, True)
        self.spare = -inner % 8

    def forward(self, x):
        """The inner width is odd, which is slow: zeros, which stay zeros, make it a multiple of 8."""
        first = F.pad(self.fc1.weight, (0, 0, 0, self.spare)), F.pad(self.fc1.bias, (0, self.spare))
        second = F.pad(self.fc2.weight, (0, self.spare)), self.fc2.bias
        x = F.gelu(F.linear(x, *(t.to(x.dtype) for t in first)), approximate="tanh")
        return F.linear(x, *(t.to(x.dtype) for t in second))


class VisionBlock(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.norm1 = LayerNorm(c["width"])
        self.norm2 = LayerNorm(c["width"])
        self.attn = VisionAttention(c["width"], c["heads"])
        self.mlp = VisionMLP(c["width"], int(c["width"] * c["mlp_ratio"]))

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PatchEmbed(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.proj = nn.Module()
        self.proj.weight = nn.Parameter(torch.empty(c["width"], 3, 14, 14))
        self.proj.bias = nn.Parameter(torch.zeros(c["width"]))

    def forward(self, pixels, dtype):
        """pixels [N, 588] uint8."""
        x = ((pixels.float() / 255 - 0.5) / 0.5).to(dtype)
        return F.linear(x, self.proj.weight.flatten(1).to(dtype), self.proj.bias.to(dtype))


class Vision(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.patch_embed = PatchEmbed(c)
        self.pos_embed = nn.Parameter(torch.empty(1, PATCHES, c["width"]))
        self.blocks = nn.ModuleList([VisionBlock(c) for _ in range(c["layers"])])
        self.norm = LayerNorm(c["width"])
        # The published checkpoints hold an attention pool that nothing uses; here a part of one.
        self.attn_pool = nn.ParameterDict({"latent": torch.empty(1, 1, c["width"])})
        self.attn_pool["norm"] = nn.ParameterDict({"weight": torch.ones(c["width"]), "bias": torch.zeros(c["width"])})
        self.attn_pool["proj"] = nn.ParameterDict({"bias": torch.zeros(c["width"])})

    def forward(self, batch, dtype):
        """Features [tiles, 81, width]."""
        rows = batch["tiles"][:, None] + torch.arange(PATCHES, device=batch["tiles"].device)
        x = self.patch_embed(batch["pixels"].index_select(0, rows.flatten()), dtype)
        x = x.view(len(rows), PATCHES, -1) + self.pos_embed.to(dtype)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class Projector(nn.Module):
    def __init__(self, c):
        super().__init__()
        wide = c["input_dim"] * DOWNSAMPLE**2
        self.layers = nn.ModuleList([Linear(wide, c["n_embed"], True), nn.Identity()])
        self.layers.append(Linear(c["n_embed"], c["n_embed"], True))

    def forward(self, x):
        """[tiles, 81, width] -> [tiles * 25, hidden]: 2x2 units of the map, padded with zeros, channel by channel."""
        tiles, _, width = x.shape
        short = SIDE * DOWNSAMPLE - GRID
        x = F.pad(x.view(tiles, GRID, GRID, width), (0, 0, 0, short, 0, short))
        x = x.view(tiles, SIDE, DOWNSAMPLE, SIDE, DOWNSAMPLE, width).permute(0, 1, 3, 5, 2, 4).reshape(
            tiles * SIDE * SIDE, width * DOWNSAMPLE**2
        )
        return self.layers[2](F.gelu(self.layers[0](x)))


def rotate(x, cos, sin):
    """Rotary embedding of neighbouring pairs, which come out as two halves. x [N, H, D]; cos, sin [N, 1, D / 2]."""
    a, b = x[..., 0::2], x[..., 1::2]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


class Attention(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.heads, self.nope, self.rope = c["num_attention_heads"], c["qk_nope_head_dim"], c["qk_rope_head_dim"]
        self.value, self.latent, hidden = c["v_head_dim"], c["kv_lora_rank"], c["hidden_size"]
        self.q_proj = Linear(hidden, self.heads * (self.nope + self.rope), False)
        self.kv_a_proj_with_mqa = Linear(hidden, self.latent + self.rope, False)
        self.kv_a_layernorm = RMSNorm(self.latent)
        self.kv_b_proj = Linear(self.latent, self.heads * (self.nope + self.value), False)
        self.o_proj = Linear(self.heads * self.value, hidden, False)

    def forward(self, x, cos, sin, segments):
        n = len(x)
        q, q_pe = self.q_proj(x).view(n, self.heads, -1).split([self.nope, self.rope], -1)
        latent, k_pe = self.kv_a_proj_with_mqa(x).split([self.latent, self.rope], -1)
        k, v = self.kv_b_proj(self.kv_a_layernorm(latent)).view(n, self.heads, -1).split([self.nope, self.value], -1)
        q = torch.cat([q, rotate(q_pe, cos, sin)], -1)
        k = torch.cat([k, rotate(k_pe[:, None], cos, sin).expand(n, self.heads, self.rope)], -1)
        v = F.pad(v, (0, self.nope + self.rope - self.value))  # the kernels want one size of head
        return self.o_proj(attend(q, k, v, segments, True)[..., : self.value].reshape(n, -1))


class Experts(nn.Module):
    """Routed experts and the shared ones. The matrices of all experts stand one below the other: [experts * inner,
    hidden]; those of the way down are stored transposed, and `pieces` tells the optimiser where to cut."""

    def __init__(self, c):
        super().__init__()
        self.count, self.chosen, inner = c["n_routed_experts"], c["num_experts_per_tok"], c["moe_intermediate_size"]
        self.gate = Linear(c["hidden_size"], self.count, False)
        self.experts = nn.ParameterDict(
            {name: torch.empty(self.count * inner, c["hidden_size"]) for name in ("gate_proj", "up_proj", "down_proj")}
        )
        for p in self.experts.values():
            p.pieces = self.count
        self.shared_experts = MLP(c["hidden_size"], c["n_shared_experts"] * inner, False)

    def forward(self, x, used):
        """x [N, hidden]; used [N, 1], 1 for rows that count. The output and the loss of uneven use: 1 if even."""
        scores = F.linear(x.float(), self.gate.weight).softmax(-1)
        before = (scores[:, None, :] > scores[:, :, None]).sum(-1)  # how many experts come before each
        first = (before < self.chosen).float()
        share = (first * used).sum(0) / (self.chosen * used.sum())
        belief = (scores * used).sum(0) / used.sum()
        gate, up, down = (self.experts[name].to(x.dtype) for name in ("gate_proj", "up_proj", "down_proj"))
        inner = F.silu(F.linear(x, gate)) * F.linear(x, up)
        weights = (scores * first).to(x.dtype)
        inner = (inner.view(len(x), self.count, -1) * weights[:, :, None]).view(len(x), -1)
        return inner @ down + self.shared_experts(x), self.count * (share * belief).sum()


class Layer(nn.Module):
    def __init__(self, c, dense):
        super().__init__()
        self.input_layernorm = RMSNorm(c["hidden_size"], c["rms_norm_eps"])
        self.self_attn = Attention(c)
        self.post_attention_layernorm = RMSNorm(c["hidden_size"], c["rms_norm_eps"])
        self.dense = dense
        self.mlp = MLP(c["hidden_size"], c["intermediate_size"], False) if dense else Experts(c)

    def forward(self, x, cos, sin, used, segments):
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, segments)
        h = self.post_attention_layernorm(x)
        if self.dense:
            return x + self.mlp(h), used.new_zeros(())
        out, uneven = self.mlp(h, used)
        return x + out, uneven


class Text(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.model = nn.Module()
        self.model.embed_tokens = nn.Embedding(c["vocab_size"], c["hidden_size"])
        dense = c["first_k_dense_replace"]
        self.model.layers = nn.ModuleList([Layer(c, k < dense) for k in range(c["num_hidden_layers"])])
        self.model.norm = RMSNorm(c["hidden_size"], c["rms_norm_eps"])
        self.lm_head = Linear(c["hidden_size"], c["vocab_size"], False)
        rope = c["qk_rope_head_dim"]
        self.register_buffer(
            "inv_freq", 1.0 / c["rope_theta"] ** (torch.arange(0, rope, 2).float() / rope), persistent=False
        )

    def forward(self, x, positions, used, segments):
        """x [N, hidden], positions [N]. The hidden rows and the mean loss of uneven use of experts."""
        angles = (positions.float()[:, None] * self.inv_freq)[:, None]
        cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        total = 0.0
        for layer in self.model.layers:
            x, uneven = layer(x, cos, sin, used, segments)
            total = total + uneven
        return self.model.norm(x), total / sum(not layer.dense for layer in self.model.layers)


class Model(nn.Module):
    COMPILED = (PatchEmbed, VisionBlock, Projector, Layer)
    penalty = 0.0  # beside the loss of the answers; set by forward

    def __init__(self, config):
        super().__init__()
        self.vision = Vision(config["vision_config"])
        self.projector = Projector(config["projector_config"])
        self.language = Text(config["language_config"])
        hidden = config["language_config"]["hidden_size"]
        initialise(self, quiet=("o_proj.weight", "down_proj.weight", "attn.proj.weight", "fc2.weight"))
        nn.init.normal_(self.vision.pos_embed, std=0.1)
        nn.init.normal_(self.vision.attn_pool["latent"], std=0.02)
        inner = config["language_config"]["moe_intermediate_size"]
        for layer in self.language.model.layers:
            if not layer.dense:
                nn.init.normal_(layer.mlp.experts["down_proj"], std=0.3 * (inner * layer.mlp.chosen) ** -0.5)
        self.image_newline = nn.Parameter(torch.randn(hidden) * 0.02)
        self.view_seperator = nn.Parameter(torch.randn(hidden) * 0.02)

    def embed(self, batch, dtype):
        x = self.language.model.embed_tokens.weight.index_select(0, batch["ids"]).to(dtype)
        if len(batch["tiles"]):
            features = self.projector(self.vision(batch, dtype))
            role = batch["role"][:, None]
            x = torch.where(role == FEATURE, features.index_select(0, batch["unit"]), x)
            x = torch.where(role == NEWLINE, self.image_newline.to(dtype), x)
            x = torch.where(role == SEPARATOR, self.view_seperator.to(dtype), x)
        return x

    def forward(self, batch, dtype=torch.bfloat16):
        """Logits at the positions batch['asked']."""
        used = (batch["role"] >= 0).float()[:, None]
        x, uneven = self.language(self.embed(batch, dtype), batch["positions"], used, batch["sequences"])
        self.penalty = BALANCE * uneven
        return self.language.lm_head(x.index_select(0, batch["asked"]))

    def published(self):
        """Tensors by the names of a checkpoint: every expert has its own."""
        out = {}
        for name, value in self.state_dict().items():
            if ".mlp.experts." not in name:
                out[name] = value
                continue
            layer, kind = name.split("experts.")
            for e, part in enumerate(value.chunk(self.experts())):
                out[f"{layer}experts.{e}.{kind}.weight"] = part.T if kind == "down_proj" else part
        return out

    def load_published(self, tensors):
        own = {}
        for name in self.state_dict():
            if ".mlp.experts." not in name:
                own[name] = tensors[name]
                continue
            layer, kind = name.split("experts.")
            parts = [tensors[f"{layer}experts.{e}.{kind}.weight"] for e in range(self.experts())]
            own[name] = torch.cat([p.T if kind == "down_proj" else p for p in parts])
        self.load_state_dict(own)

    def experts(self):
        return next(layer.mlp.count for layer in self.language.model.layers if not layer.dense)
