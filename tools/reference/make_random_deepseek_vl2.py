#!/usr/bin/env python3
"""Write a checkpoint folder of DeepSeek-VL2 with random BF16 weights. Needs NumPy, and tokenizers where no --tokenizer
is given. Answers of such a model mean nothing.

  make_random_deepseek_vl2.py OUT --size small --shards 4 [--tokenizer FOLDER]
  make_random_deepseek_vl2.py OUT --size noaux --shards 2 --set language_config.hidden_size=64

tiny, small and base have the published shapes, with matrices of deviation 0.02 read from a repeated block: files for
tests of loading, memory and speed. mha and noaux are a few hundred kilobytes, for goldens: every tensor has values of
its own, scaled so that logits spread well beyond bfloat16's steps. mha has plain attention and softmax routing, noaux
latent attention and sigmoid routing with a correction bias that changes the choice; noaux's tokenizer.json lacks the
tokens that the processor appends, and its weights include an attention pool that no one reads.
"""

import argparse
import json
import pathlib
import shutil
import zlib

import numpy as np

from make_random_checkpoint import bf16_bits, ring_filler, write_json, write_tensors

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
BOS, EOS, PAD = (
    "<\uff5cbegin\u2581of\u2581sentence\uff5c>",
    "<\uff5cend\u2581of\u2581sentence\uff5c>",
    "<\uff5c\u2581pad\u2581\uff5c>",
)
APPENDED = ["<image>", "<|ref|>", "<|/ref|>", "<|det|>", "<|/det|>", "<|grounding|>", "<|User|>", "<|Assistant|>"]
TILES = [
    (1, 1),
    (1, 2),
    (2, 1),
    (1, 3),
    (3, 1),
    (1, 4),
    (4, 1),
    (2, 2),
    (1, 5),
    (5, 1),
    (1, 6),
    (6, 1),
    (2, 3),
    (3, 2),
    (1, 7),
    (7, 1),
    (1, 8),
    (8, 1),
    (2, 4),
    (4, 2),
    (1, 9),
    (9, 1),
    (3, 3),
]  # in the published order

COMMON = {
    "first_k_dense_replace": 1,
    "moe_layer_freq": 1,
    "n_shared_experts": 2,
    "n_group": 1,
    "topk_group": 1,
    "q_lora_rank": None,
    "rms_norm_eps": 1e-06,
    "rope_theta": 10000.0,
    "max_position_embeddings": 4096,
    "hidden_act": "silu",
    "torch_dtype": "bfloat16",
    "model_type": "deepseek_v2",
}
SOFTMAX = {"scoring_func": "softmax", "topk_method": "greedy", "norm_topk_prob": False, "routed_scaling_factor": 1.0}
SIGMOID = {"scoring_func": "sigmoid", "topk_method": "noaux_tc", "norm_topk_prob": True, "routed_scaling_factor": 2.0}
LATENT = {"use_mla": True, "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128}
PLAIN = {"use_mla": False, "kv_lora_rank": None, "qk_nope_head_dim": 0, "qk_rope_head_dim": 0, "v_head_dim": 0}


def language(layers, hidden, heads, dense, expert, experts, chosen, vocab, *rest):
    shape = {
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "intermediate_size": dense,
        "moe_intermediate_size": expert,
        "n_routed_experts": experts,
        "num_experts_per_tok": chosen,
        "vocab_size": vocab,
    }
    tokens = (
        {"bos_token_id": 100000, "eos_token_id": 100001} if vocab == 102400 else {"bos_token_id": 0, "eos_token_id": 1}
    )
    return {**COMMON, **shape, **tokens, **{k: v for part in rest for k, v in part.items()}}


LANGUAGES = {
    "tiny": language(12, 1280, 10, 6848, 896, 64, 6, 129280, SOFTMAX, PLAIN),
    "small": language(27, 2048, 16, 10944, 1408, 64, 6, 102400, SOFTMAX, LATENT),
    "base": language(30, 2560, 32, 12288, 1536, 72, 6, 129280, SIGMOID, LATENT),
    "mha": language(3, 48, 2, 40, 12, 8, 3, 320, SOFTMAX, PLAIN),
    "noaux": language(
        3,
        48,
        2,
        64,
        16,
        8,
        3,
        320,
        SIGMOID,
        LATENT,
        {"kv_lora_rank": 24, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 12},
    ),
}
# Keys that the published files leave to the class.
OMITTED = {
    "small": ["vocab_size", "bos_token_id", "eos_token_id", "use_mla"],
    "base": ["num_hidden_layers", "num_attention_heads", "num_key_value_heads", "kv_lora_rank", "use_mla"],
}
PUBLISHED_VISION = {
    "layers": 27,
    "mlp_ratio": 3.7362,
    "model_name": "siglip_so400m_patch14_384",
    "model_type": "vision",
    "patch_size": 14,
    "width": 1152,
}
# As in the published tower the last pixels of a tile belong to no patch and the square of patches is odd.
SMALL_VISION = {
    "layers": 2,
    "mlp_ratio": 3.7362,
    "model_name": "random",
    "model_type": "vision",
    "patch_size": 10,
    "width": 32,
    "heads": 2,
    "image_size": 33,
}


def config(size):
    published = size in ("tiny", "small", "base")
    vision = dict(PUBLISHED_VISION if published else SMALL_VISION)
    side = vision.get("image_size", 384)
    text = dict(LANGUAGES[size])
    return {
        "architectures": ["DeepseekVLV2ForCausalLM"],
        "candidate_resolutions": [[w * side, h * side] for w, h in TILES],
        "global_view_pos": "head",
        "language_config": text,
        "model_type": "deepseek_vl_v2",
        "projector_config": {
            "model_type": "mlp_projector",
            "input_dim": vision["width"],
            "n_embed": text["hidden_size"],
        },
        "tile_tag": "2D",
        "torch_dtype": "bfloat16",
        "vision_config": vision,
    }


def tensors(settings, pool):
    """Names and shapes."""
    text, eyes, hidden = (
        settings["language_config"],
        settings["vision_config"],
        settings["language_config"]["hidden_size"],
    )
    width, patch = eyes["width"], eyes["patch_size"]
    ffn = int(width * eyes["mlp_ratio"])

    def linear(name, rows, cols, bias=True):
        yield name + ".weight", (rows, cols)
        if bias:
            yield name + ".bias", (rows,)

    def mlp(name, inner):
        yield from linear(name + "gate_proj", inner, hidden, bias=False)
        yield from linear(name + "up_proj", inner, hidden, bias=False)
        yield from linear(name + "down_proj", hidden, inner, bias=False)

    yield "image_newline", (hidden,)
    yield "view_seperator", (hidden,)
    yield "vision.pos_embed", (1, (eyes.get("image_size", 384) // patch) ** 2, width)
    yield "vision.patch_embed.proj.weight", (width, 3, patch, patch)
    yield "vision.patch_embed.proj.bias", (width,)
    for i in range(eyes["layers"]):
        block = f"vision.blocks.{i}."
        for norm in ("norm1", "norm2"):
            yield block + norm + ".weight", (width,)
            yield block + norm + ".bias", (width,)
        yield from linear(block + "attn.qkv", 3 * width, width)
        yield from linear(block + "attn.proj", width, width)
        yield from linear(block + "mlp.fc1", ffn, width)
        yield from linear(block + "mlp.fc2", width, ffn)
    yield "vision.norm.weight", (width,)
    yield "vision.norm.bias", (width,)
    if pool:
        yield "vision.attn_pool.latent", (1, 1, width)
        yield from linear("vision.attn_pool.q", width, width)
        yield from linear("vision.attn_pool.kv", 2 * width, width)
        yield from linear("vision.attn_pool.proj", width, width)
        yield "vision.attn_pool.norm.weight", (width,)
        yield "vision.attn_pool.norm.bias", (width,)
        yield from linear("vision.attn_pool.mlp.fc1", ffn, width)
        yield from linear("vision.attn_pool.mlp.fc2", width, ffn)
    yield from linear("projector.layers.0", hidden, 4 * width)
    yield from linear("projector.layers.2", hidden, hidden)

    yield "language.model.embed_tokens.weight", (text["vocab_size"], hidden)
    heads = text["num_attention_heads"]
    for i in range(text["num_hidden_layers"]):
        layer = f"language.model.layers.{i}."
        yield layer + "input_layernorm.weight", (hidden,)
        yield layer + "post_attention_layernorm.weight", (hidden,)
        if text["use_mla"]:
            nope, rope, v, rank = (
                text[k] for k in ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "kv_lora_rank")
            )
            yield from linear(layer + "self_attn.q_proj", heads * (nope + rope), hidden, bias=False)
            yield from linear(layer + "self_attn.kv_a_proj_with_mqa", rank + rope, hidden, bias=False)
            yield layer + "self_attn.kv_a_layernorm.weight", (rank,)
            yield from linear(layer + "self_attn.kv_b_proj", heads * (nope + v), rank, bias=False)
            yield from linear(layer + "self_attn.o_proj", hidden, heads * v, bias=False)
        else:
            kv = hidden // heads * text["num_key_value_heads"]
            yield from linear(layer + "self_attn.q_proj", hidden, hidden, bias=False)
            yield from linear(layer + "self_attn.k_proj", kv, hidden, bias=False)
            yield from linear(layer + "self_attn.v_proj", kv, hidden, bias=False)
            yield from linear(layer + "self_attn.o_proj", hidden, hidden, bias=False)
        if i < text["first_k_dense_replace"]:
            yield from mlp(layer + "mlp.", text["intermediate_size"])
            continue
        yield layer + "mlp.gate.weight", (text["n_routed_experts"], hidden)
        if text["topk_method"] == "noaux_tc":
            yield layer + "mlp.gate.e_score_correction_bias", (text["n_routed_experts"],)
        for e in range(text["n_routed_experts"]):
            yield from mlp(f"{layer}mlp.experts.{e}.", text["moe_intermediate_size"])
        yield from mlp(layer + "mlp.shared_experts.", text["moe_intermediate_size"] * text["n_shared_experts"])
    yield "language.model.norm.weight", (hidden,)
    yield "language.lm_head.weight", (text["vocab_size"], hidden)


def spread_filler(seed):
    """Normals by the kind of tensor: matrices keep the size of what they are given, logits have a deviation of 4."""

    def fill(out, name, shape):
        values = np.random.default_rng([seed, zlib.crc32(name.encode())]).standard_normal(shape, dtype=np.float32)
        if name.endswith("weight") and "norm" in name:
            values = 1 + 0.1 * values
        elif "e_score_correction_bias" in name:
            values *= 0.3
        elif name.endswith("bias"):
            values *= 0.1
        elif "embed_tokens" not in name and len(shape) > 1:
            gain = 4 if "lm_head" in name else 0.5 * shape[-1] ** 0.5 if "pos_embed" in name else 1
            values *= gain / np.sqrt(np.prod(shape[1:]) if len(shape) != 3 else shape[-1])
        out.write(bf16_bits(values))

    return fill


def small_tokenizer(special):
    """A tokenizer of the DeepSeek family, its special tokens at the ids given: the bytes, and merges of a few words."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\p{N}{1,3}"), "isolated"),
            pre_tokenizers.Split(Regex("[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"), "isolated"),
            pre_tokenizers.Split(
                Regex(
                    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
                    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
                ),
                "isolated",
            ),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    words = "what which where is are the this picture image colour shape in of it and there how many describe\n\n"
    trainer = trainers.BpeTrainer(
        vocab_size=256 + 52, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator([words] * 2, trainer)
    spelled = json.loads(tokenizer.to_str())
    taken, vocab, at = set(special.values()), dict(special), 0
    for token in sorted(spelled["model"]["vocab"], key=spelled["model"]["vocab"].get):
        while at in taken:
            at += 1
        vocab[token] = at
        at += 1
    spelled["model"]["vocab"] = dict(sorted(vocab.items(), key=lambda item: item[1]))
    result = Tokenizer.from_str(json.dumps(spelled))
    result.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in sorted(special, key=special.get)])
    assert all(result.token_to_id(t) == i for t, i in special.items())
    return result


def special_tokens(size):
    if size == "small":
        return {t: 100000 + i for i, t in enumerate([BOS, EOS, PAD, *APPENDED])}
    first = {BOS: 0, EOS: 1, PAD: 2}
    if size == "noaux":
        return first
    start = 311 if size == "mha" else 128815
    return {**first, **{t: start + i for i, t in enumerate(APPENDED)}}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--size", choices=LANGUAGES, default="small")
    parser.add_argument("--shards", type=int, default=1)
    parser.add_argument(
        "--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="another value in config.json"
    )
    parser.add_argument("--tokenizer", type=pathlib.Path, help="folder to copy the tokenizer's files from")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--spread", action="store_true", help="values of its own for every tensor, whatever the size")
    args = parser.parse_args()

    settings, changed = config(args.size), set()
    for change in args.set:
        key, value = change.split("=", 1)
        section, key = key.split(".")
        settings[section][key] = json.loads(value)
        changed.add(key)
    settings["projector_config"].update(
        input_dim=settings["vision_config"]["width"], n_embed=settings["language_config"]["hidden_size"]
    )
    args.out.mkdir(parents=True, exist_ok=True)
    if args.tokenizer:
        for name in TOKENIZER_FILES:
            if (args.tokenizer / name).exists():
                shutil.copy(args.tokenizer / name, args.out / name)
    else:
        small_tokenizer(special_tokens(args.size)).save(str(args.out / "tokenizer.json"))
        write_json(
            args.out / "tokenizer_config.json",
            {
                "add_bos_token": False,
                "add_eos_token": False,
                "bos_token": BOS,
                "eos_token": EOS,
                "pad_token": PAD,
                "model_max_length": 4096,
                "tokenizer_class": "LlamaTokenizerFast",
            },
        )
    write_json(
        args.out / "processor_config.json",
        {
            "add_special_token": False,
            "candidate_resolutions": settings["candidate_resolutions"],
            "downsample_ratio": 2,
            "ignore_id": -100,
            "image_mean": [0.5, 0.5, 0.5],
            "image_std": [0.5, 0.5, 0.5],
            "image_token": "<image>",
            "mask_prompt": False,
            "normalize": True,
            "pad_token": PAD,
            "patch_size": settings["vision_config"]["patch_size"],
            "processor_class": "DeepseekVLV2Processor",
            "sft_format": "deepseek",
        },
    )
    entries = list(tensors(settings, pool=args.size != "mha"))
    for key in set(OMITTED.get(args.size, [])) - changed:
        del settings["language_config"][key]
    write_json(args.out / "config.json", settings)
    filler = ring_filler if args.size in ("tiny", "small", "base") and not args.spread else spread_filler
    write_tensors(args.out, entries, args.shards, filler(args.seed))


if __name__ == "__main__":
    main()
