"""DeepSeek-VL2 in plain torch on the CPU: processor and model, written from the published formulas as the reference of
our goldens. transformers 5.17 has no DeepSeek-VL2, and the code that was published with it needs transformers 4.38.

    python tools/reference/deepseek_vl2.py MODEL "What is this?" picture.png [--dtype float32] [--max-tokens 64]

MODEL is an ordinary checkpoint folder: config.json, model.safetensors (or shards and their index), tokenizer.json,
processor_config.json. Roundings are those of the published eager code with weights in bfloat16: a linear layer
sums in float32 and rounds once; attention scores, probabilities and rotations are of the model's type, softmax, norms
and the router of float32; the table of rotary frequencies stays float32. Attention of the vision tower is torch's
scaled_dot_product_attention. `tap(name, value)` receives every stage.

Needs torch, safetensors, tokenizers, Pillow 13 (its ImageOps.pad and bicubic filter are part of the model).
"""

import argparse
import json
import math
import os
import re

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from safetensors.torch import load_file
from tokenizers import AddedToken, Tokenizer

PAD, IMAGE, USER, ASSISTANT = "<\uff5c\u2581pad\u2581\uff5c>", "<image>", "<|User|>", "<|Assistant|>"
GROUNDING = ["<|ref|>", "<|/ref|>", "<|det|>", "<|/det|>", "<|grounding|>"]

# What a key that config.json leaves out means: the defaults of the published configuration classes.
LANGUAGE = {
    "vocab_size": 102400,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "moe_intermediate_size": 1407,
    "num_hidden_layers": 30,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "n_shared_experts": None,
    "n_routed_experts": None,
    "routed_scaling_factor": 1.0,
    "kv_lora_rank": 512,
    "q_lora_rank": 1536,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "qk_nope_head_dim": 128,
    "topk_method": "greedy",
    "n_group": None,
    "topk_group": None,
    "num_experts_per_tok": None,
    "moe_layer_freq": 1,
    "first_k_dense_replace": 0,
    "norm_topk_prob": False,
    "scoring_func": "softmax",
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "bos_token_id": 100000,
    "eos_token_id": 100001,
    "tie_word_embeddings": False,
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "attention_bias": False,
    "use_mla": True,
}
VISION = {"image_size": 384, "patch_size": 16, "width": 1024, "layers": 24, "heads": 16, "mlp_ratio": 4}
PROJECTOR = {
    "projector_type": "downsample_mlp_gelu",
    "input_dim": 1152,
    "n_embed": 2048,
    "depth": 2,
    "mlp_ratio": 1,
    "downsample_ratio": 2,
    "token_pooling": False,
}


class Config:
    """config.json with the defaults filled in: dictionaries language, vision, projector."""

    def __init__(self, raw):
        self.language = {**LANGUAGE, **raw.get("language_config", {})}
        self.vision = {**VISION, **raw.get("vision_config", {})}
        self.projector = {**PROJECTOR, **raw.get("projector_config", {})}
        self.candidate_resolutions = [tuple(r) for r in raw.get("candidate_resolutions", [(384, 384)])]
        self.global_first = raw.get("global_view_pos", "head") == "head"
        t = self.language
        assert raw.get("tile_tag") == "2D", "only tile_tag 2D is published"
        assert self.projector["projector_type"] == "downsample_mlp_gelu" and not self.projector["token_pooling"]
        assert not t["use_mla"] or t["q_lora_rank"] is None, "all published sizes have q_lora_rank null"
        assert t["rope_scaling"] is None and not t["attention_bias"] and t["hidden_act"] == "silu"
        assert (t["n_group"] or 1) == 1, "one group of experts in all published sizes"

    @staticmethod
    def read(folder):
        return Config(read_json(folder, "config.json"))


def read_json(folder, name):
    with open(os.path.join(folder, name), encoding="utf-8") as f:
        return json.load(f)


def read_weights(folder, dtype):
    if os.path.exists(os.path.join(folder, "model.safetensors")):
        files = ["model.safetensors"]
    else:
        files = sorted(set(read_json(folder, "model.safetensors.index.json")["weight_map"].values()))
    weights = {}
    for name in files:
        weights.update(load_file(os.path.join(folder, name)))
    return {name: value.to(dtype) for name, value in weights.items() if ".attn_pool." not in name}


# ---- processor -------------------------------------------------------------------------------------------------------


def best_resolution(width, height, candidates):
    """The candidate (width, height) that shows most of the picture's pixels; of equals the one that wastes least, of
    those the first."""
    best, most, least = None, 0, math.inf
    for w, h in candidates:
        scale = min(w / width, h / height)
        shown = min(int(width * scale) * int(height * scale), width * height)
        waste = w * h - shown
        if shown > most or (shown == most and waste < least):
            best, most, least = (w, h), shown, waste
    return best


class Processor:
    def __init__(self, folder):
        config = Config.read(folder)
        raw = {
            "candidate_resolutions": config.candidate_resolutions,
            "patch_size": config.vision["patch_size"],
            "downsample_ratio": config.projector["downsample_ratio"],
        }
        if os.path.exists(os.path.join(folder, "processor_config.json")):
            raw.update(read_json(folder, "processor_config.json"))
        self.candidates = [tuple(r) for r in raw["candidate_resolutions"]]
        self.size = self.candidates[0][0]
        self.mean, self.std = raw.get("image_mean", [0.5] * 3), raw.get("image_std", [0.5] * 3)
        self.normalize = raw.get("normalize", True)
        self.side = math.ceil(self.size // raw["patch_size"] / raw["downsample_ratio"])  # tokens along a tile's edge
        self.bos, self.eos = config.language["bos_token_id"], config.language["eos_token_id"]

        spelled = read_json(folder, "tokenizer.json")
        self.tokenizer = Tokenizer.from_str(json.dumps(spelled))
        for token in [PAD, IMAGE, *GROUNDING, USER, ASSISTANT]:
            if self.tokenizer.token_to_id(token) is None:
                self.tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False)])
        spelled["added_tokens"] = []
        self.plain = Tokenizer.from_str(json.dumps(spelled))  # reads no special token out of text
        self.image_id = self.id(IMAGE)

    def id(self, token):
        return self.tokenizer.token_to_id(token)

    def load_image(self, path):
        """No rotation by EXIF; alpha is dropped, not blended."""
        with Image.open(path) as image:
            return image.convert("RGB")

    def crop(self, image, tiling):
        """Tiles across and down of the local view."""
        width, height = best_resolution(*image.size, self.candidates) if tiling else (self.size, self.size)
        return width // self.size, height // self.size

    def views(self, image, tiling):
        """Uint8 [1 + nw nh, size, size, 3], the global view and then the local tiles row by row; and (nw, nh). Both
        views come from the picture itself."""
        nw, nh = self.crop(image, tiling)
        grey = tuple(int(x * 255) for x in self.mean)
        views = [ImageOps.pad(image, (self.size, self.size), color=grey)]
        local = ImageOps.pad(image, (nw * self.size, nh * self.size), color=grey)
        for y in range(0, nh * self.size, self.size):
            for x in range(0, nw * self.size, self.size):
                views.append(local.crop((x, y, x + self.size, y + self.size)))
        return np.stack([np.asarray(v) for v in views]), (nw, nh)

    def normalized(self, views):
        """Float32 [tiles, 3, size, size]."""
        x = torch.from_numpy(views).permute(0, 3, 1, 2).contiguous().float() / 255
        if self.normalize:
            shape = (1, 3, 1, 1)
            x = (x - torch.tensor(self.mean).reshape(shape)) / torch.tensor(self.std).reshape(shape)
        return x

    def image_tokens(self, nw, nh):
        n = self.side
        return n * (n + 1) + 1 + n * nh * (n * nw + 1)

    def prepare(self, messages, load=None):
        """Messages {role, content} to (ids, [(tiles [.., 3, size, size], (nw, nh))]). Content is a string or parts
        {type: text, text} and {type: image, path}; `load` opens a path. More than two pictures switch tiling off."""
        load = load or self.load_image
        parts = [p for m in messages if not isinstance(m["content"], str) for p in m["content"]]
        pictures = [load(p["path"]) for p in parts if p["type"] == "image"]
        media = []
        for picture in pictures:
            views, crop = self.views(picture, tiling=len(pictures) <= 2)
            media.append((self.normalized(views), crop))
        return self.prompt_ids(messages, [self.image_tokens(*crop) for _, crop in media]), media

    def prompt_ids(self, messages, image_tokens):
        """image_tokens: of each picture, in order. Text between two special tokens or pictures is tokenised alone."""
        ids, text, counts = [self.bos], "", iter(image_tokens)

        def flush():
            nonlocal text
            ids.extend(self.plain.encode(text, add_special_tokens=False).ids)
            text = ""

        def add(items):
            nonlocal text
            for item in items:
                if isinstance(item, str):
                    text += item
                else:
                    flush()
                    ids.extend([self.image_id] * next(counts) if item == self.image_id else [item])

        for i, message in enumerate(messages):
            items = self.content_items(message["content"])
            if message["role"] == "user":
                turn = [": ", *items, "\n\n"] if items else [":"]
                add([self.id(USER), *turn, self.id(ASSISTANT), ":"])
            else:
                assert message["role"] == "assistant" or (message["role"] == "system" and i == 0), message["role"]
                assert self.image_id not in items, "pictures belong to user turns"
                add([*items, self.eos] if message["role"] == "assistant" else items)
            flush()
        assert messages[-1]["role"] == "user"
        return ids

    def content_items(self, content):
        """Stripped content as strings and ids. A picture is <image> and a newline, unless the next part is text that
        brings one. Grounding tokens in text become their ids, other special tokens stay text."""
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        items = []
        for part, after in zip(parts, [*parts[1:], {}]):
            if part["type"] == "image":
                items += [self.image_id] if after.get("text", "").startswith("\n") else [self.image_id, "\n"]
            else:
                pattern = "(" + "|".join(map(re.escape, GROUNDING)) + ")"
                items += [self.id(t) if t in GROUNDING else t for t in re.split(pattern, part["text"])]
        while items and isinstance(items[0], str) and not items[0].strip():
            items.pop(0)
        while items and isinstance(items[-1], str) and not items[-1].strip():
            items.pop()
        if items and isinstance(items[0], str):
            items[0] = items[0].lstrip()
        if items and isinstance(items[-1], str):
            items[-1] = items[-1].rstrip()
        return items

    def decode(self, ids, skip_special=True):
        return self.tokenizer.decode(ids, skip_special_tokens=skip_special)


# ---- model -----------------------------------------------------------------------------------------------------------


def no_tap(name, value):
    pass


def rms_norm(x, weight, eps):
    """Normalised in float32, rounded, then times the weight."""
    y = x.float()
    y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + eps)
    return weight * y.to(x.dtype)


def rotary_table(positions, dim, theta, dtype):
    """cos, sin [T, dim], both halves alike."""
    inv_freq = 1.0 / theta ** (torch.arange(0, dim, 2).float() / dim)
    angles = torch.outer(positions.float(), inv_freq)
    angles = torch.cat([angles, angles], -1)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x, cos, sin):
    """Channel i with channel i + dim / 2."""
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat([-b, a], -1) * sin


def deinterleave(x):
    """Even channels, then odd ones."""
    return torch.cat([x[..., 0::2], x[..., 1::2]], -1)


def softmax(scores, positions):
    """Causal: scores [H, T, S], where query t sits at positions[t] and keys at 0..S-1."""
    hidden = torch.arange(scores.shape[-1]) > positions[:, None]
    return scores.masked_fill(hidden, -math.inf).softmax(-1, dtype=torch.float32).to(scores.dtype)


def mla(x, w, config, positions, cache):
    """Multi-head latent attention, always in the absorbed form. The cache is (k_rope [S, R], latent [S, C])."""
    heads, nope, rope = config["num_attention_heads"], config["qk_nope_head_dim"], config["qk_rope_head_dim"]
    rank = config["kv_lora_rank"]
    q = F.linear(x, w["q_proj.weight"]).reshape(len(x), heads, nope + rope).transpose(0, 1)
    q_nope, q_rope = q.split([nope, rope], -1)
    latent, k_rope = F.linear(x, w["kv_a_proj_with_mqa.weight"]).split([rank, rope], -1)
    latent = rms_norm(latent, w["kv_a_layernorm.weight"], 1e-6)
    cos, sin = rotary_table(positions, rope, config["rope_theta"], x.dtype)
    q_rope, k_rope = rotate(deinterleave(q_rope), cos, sin), rotate(deinterleave(k_rope), cos, sin)
    if cache is not None:
        k_rope, latent = torch.cat([cache[0], k_rope]), torch.cat([cache[1], latent])
    up = w["kv_b_proj.weight"].reshape(heads, -1, rank)
    up_k, up_v = up[:, :nope], up[:, nope:]
    scale = (nope + rope) ** -0.5
    scores = (q_rope @ k_rope.T + (q_nope @ up_k) @ latent.T) * scale
    out = softmax(scores, positions) @ latent @ up_v.mT
    return F.linear(out.transpose(0, 1).flatten(1), w["o_proj.weight"]), (k_rope, latent)


def mha(x, w, config, positions, cache):
    """Attention of Llama. The cache is (k, v), each [K, S, Dh]."""
    heads, groups = config["num_attention_heads"], config["num_key_value_heads"] or config["num_attention_heads"]
    dim = config["hidden_size"] // heads
    q, k, v = (F.linear(x, w[f"{n}_proj.weight"]).reshape(len(x), -1, dim).transpose(0, 1) for n in "qkv")
    cos, sin = rotary_table(positions, dim, config["rope_theta"], x.dtype)
    q, k = rotate(q, cos, sin), rotate(k, cos, sin)
    if cache is not None:
        k, v = torch.cat([cache[0], k], 1), torch.cat([cache[1], v], 1)
    wide = lambda t: t.repeat_interleave(heads // groups, 0)
    scores = q @ wide(k).mT / math.sqrt(dim)
    out = softmax(scores, positions) @ wide(v)
    return F.linear(out.transpose(0, 1).flatten(1), w["o_proj.weight"]), (k, v)


def swiglu(x, w):
    gate = F.silu(F.linear(x, w["gate_proj.weight"]))
    return F.linear(gate * F.linear(x, w["up_proj.weight"]), w["down_proj.weight"])


def route(x, w, config):
    """Experts of each token and their weights, float32: [T, k] and [T, k], best first."""
    logits = F.linear(x.float(), w["gate.weight"].float())
    count = config["num_experts_per_tok"]
    scores = logits.sigmoid() if config["scoring_func"] == "sigmoid" else logits.softmax(-1)
    choice = scores
    if config["topk_method"] == "noaux_tc":
        choice = scores + w["gate.e_score_correction_bias"]  # decides who is chosen, not how much each counts
    chosen = choice.topk(count, -1).indices
    weights = scores.gather(1, chosen)
    if config["norm_topk_prob"] and count > 1:
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
    return chosen, weights * config["routed_scaling_factor"]


def moe(x, w, config):
    chosen, weights = route(x, w, config)
    outputs = x.new_empty(*chosen.shape, x.shape[-1])
    for e in chosen.unique().tolist():
        at = chosen == e
        outputs[at] = swiglu(x[at.any(-1)], w.under(f"experts.{e}."))
    total = torch.zeros(x.shape, dtype=torch.float32)
    for slot in range(chosen.shape[1]):
        total += outputs[:, slot].float() * weights[:, slot, None]
    total = total.to(x.dtype)
    return total + swiglu(x, w.under("shared_experts.")) if config["n_shared_experts"] else total


class Weights:
    """Tensors by name under a prefix."""

    def __init__(self, tensors, prefix=""):
        self.tensors, self.prefix = tensors, prefix

    def __getitem__(self, name):
        return self.tensors[self.prefix + name]

    def under(self, prefix):
        return Weights(self.tensors, self.prefix + prefix)

    def linear(self, x, name):
        return F.linear(x, self[name + ".weight"], self[name + ".bias"])

    def layer_norm(self, x, name):
        return F.layer_norm(x, x.shape[-1:], self[name + ".weight"], self[name + ".bias"], eps=1e-6)


def vision_block(x, w, heads):
    """x [tiles, N, width]."""
    b, n, width = x.shape
    qkv = w.linear(w.layer_norm(x, "norm1"), "attn.qkv").reshape(b, n, 3, heads, width // heads)
    out = F.scaled_dot_product_attention(*qkv.permute(2, 0, 3, 1, 4))
    x = x + w.linear(out.transpose(1, 2).reshape(b, n, width), "attn.proj")
    hidden = F.gelu(w.linear(w.layer_norm(x, "norm2"), "mlp.fc1"), approximate="tanh")
    return x + w.linear(hidden, "mlp.fc2")


def patches_of(tiles, patch):
    """[tiles, 3, size, size] to [tiles, N, 3 patch patch]; pixels past the last whole patch are not looked at."""
    x = tiles.unfold(2, patch, patch).unfold(3, patch, patch)
    return x.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)


def vision(tiles, w, config, tap=no_tap):
    """[tiles, 3, size, size] to [tiles, N, width]. Tap vision.patch_embed is before the positions are added."""
    flat = lambda name, value: tap(name, value.flatten(0, 1))
    flat("vision.patches", patches_of(tiles, config["patch_size"]))
    x = F.conv2d(tiles, w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], stride=config["patch_size"])
    x = x.flatten(2).mT
    flat("vision.patch_embed", x)
    x = x + w["pos_embed"]
    for i in range(config["layers"]):
        x = vision_block(x, w.under(f"blocks.{i}."), config["heads"])
        flat(f"vision.block.{i}", x)
    x = w.layer_norm(x, "norm")
    flat("vision.norm", x)
    return x


def projector(x, w, config):
    """[tiles, N, width] to [tiles, n, D]: squares of ratio x ratio, zeros past the edge, channel-major."""
    b, n, width = x.shape
    side, ratio = math.isqrt(n), config["downsample_ratio"]
    x = x.reshape(b, side, side, width)
    x = F.pad(x, (0, 0, 0, -side % ratio, 0, -side % ratio))
    m = x.shape[1] // ratio
    x = x.reshape(b, m, ratio, m, ratio, width).permute(0, 1, 3, 5, 2, 4).reshape(b, m * m, width * ratio * ratio)
    for i in range(config["depth"]):
        x = w.linear(F.gelu(x) if i else x, f"layers.{2 * i}")
    return x


def arrange(x, crop, newline, separator, global_first=True):
    """Tiles [1 + nw nh, n, D] to the tokens of the picture [.., D]: each row of a view ends in newline, local tiles are
    one map whose rows run across them, separator stands between the views."""
    (nw, nh), side, width = crop, math.isqrt(x.shape[1]), x.shape[2]

    def rows(grid):
        return torch.cat([grid, newline.expand(len(grid), 1, width)], 1).flatten(0, 1)

    whole = rows(x[0].reshape(side, side, width))
    local = x[1:].reshape(nh, nw, side, side, width).transpose(1, 2).reshape(nh * side, nw * side, width)
    views = [whole, separator[None], rows(local)]
    return torch.cat(views if global_first else views[::-1])


class Model:
    def __init__(self, config, tensors):
        self.config, self.w = config, Weights(tensors)
        self.dtype = self.w["language.model.embed_tokens.weight"].dtype

    @staticmethod
    def load(folder, dtype=torch.float32):
        return Model(Config.read(folder), read_weights(folder, dtype))

    def embed_image(self, tiles, crop, tap=no_tap):
        """[tiles, 3, size, size] to [tokens, D]."""
        config = self.config
        x = vision(tiles.to(self.dtype), self.w.under("vision."), config.vision, tap)
        x = projector(x, self.w.under("projector."), config.projector)
        tap("projector", x.flatten(0, 1))
        x = arrange(x, crop, self.w["image_newline"], self.w["view_seperator"], config.global_first)
        tap("vision.embeds", x)
        return x

    def embed(self, ids, media, image_id, tap=no_tap):
        """ids and pictures (tiles, crop) to [T, D]."""
        ids = torch.tensor(ids)
        x = F.embedding(ids, self.w["language.model.embed_tokens.weight"])
        if media:
            x[ids == image_id] = torch.cat([self.embed_image(tiles, crop, tap) for tiles, crop in media])
        tap("text.embed", x)
        return x

    def layer(self, i, x, positions, cache=None):
        config, w = self.config.language, self.w.under(f"language.model.layers.{i}.")
        attention = mla if config["use_mla"] else mha
        y = rms_norm(x, w["input_layernorm.weight"], config["rms_norm_eps"])
        y, cache = attention(y, w.under("self_attn."), config, positions, cache)
        x = x + y
        y = rms_norm(x, w["post_attention_layernorm.weight"], config["rms_norm_eps"])
        routed = (
            config["n_routed_experts"] is not None
            and i >= config["first_k_dense_replace"]
            and i % config["moe_layer_freq"] == 0
        )
        return x + (moe(y, w.under("mlp."), config) if routed else swiglu(y, w.under("mlp."))), cache

    def forward(self, x, caches=None, tap=no_tap, rows=1):
        """Embeddings [T, D] that follow what the caches hold, to float32 logits of the last `rows` [rows, V]
        and caches."""
        config = self.config.language
        caches = caches or [None] * config["num_hidden_layers"]
        past = 0 if caches[0] is None else caches[0][0].shape[-2]
        positions = torch.arange(past, past + len(x))
        after = []
        for i, cache in enumerate(caches):
            x, cache = self.layer(i, x, positions, cache)
            tap(f"text.layer.{i}", x)
            after.append(cache)
        x = rms_norm(x[-rows:], self.w["language.model.norm.weight"], config["rms_norm_eps"])
        head = "language.model.embed_tokens" if config["tie_word_embeddings"] else "language.lm_head"
        logits = F.linear(x, self.w[head + ".weight"]).float()
        tap("text.logits", logits)
        return logits, after

    @torch.no_grad()
    def generate(self, ids, media, image_id, max_tokens, tap=no_tap):
        """Greedy: (tokens, end of sentence included; margins, best minus second logit of every step). Taps see the
        prompt only."""
        tokens, margins = [], []
        x, caches = self.embed(ids, media, image_id, tap), None
        while len(tokens) < max_tokens:
            logits, caches = self.forward(x, caches, no_tap if tokens else tap)
            best = logits[0].topk(2)
            tokens.append(best.indices[0].item())
            margins.append((best.values[0] - best.values[1]).item())
            if tokens[-1] == self.config.language["eos_token_id"]:
                break
            x = F.embedding(torch.tensor(tokens[-1:]), self.w["language.model.embed_tokens.weight"])
        return tokens, margins


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("prompt")
    parser.add_argument("images", nargs="*")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--max-tokens", type=int, default=64)
    args = parser.parse_args()
    processor = Processor(args.model)
    content = [{"type": "image", "path": p} for p in args.images] + [{"type": "text", "text": args.prompt}]
    ids, media = processor.prepare([{"role": "user", "content": content}])
    model = Model.load(args.model, getattr(torch, args.dtype))
    tokens, _ = model.generate(ids, media, processor.image_id, args.max_tokens)
    print(processor.decode(tokens))


if __name__ == "__main__":
    main()
