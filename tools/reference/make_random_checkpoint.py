#!/usr/bin/env python3
"""Write a checkpoint folder of Qwen2.5-VL with random BF16 weights of the published shapes: full-size files for tests
of loading, memory and speed. Needs NumPy. Answers of such a model mean nothing.

  make_random_checkpoint.py OUT --size 3b --shards 2 --tokenizer FOLDER

FOLDER is any checkpoint folder; its tokenizer and chat template files are copied.
"""
import argparse
import json
import pathlib
import shutil
import struct
import zlib

import numpy as np

# layers, hidden, intermediate, heads, kv heads, vocabulary, tied, vision intermediate
SIZES = {
    "tiny": (2, 256, 512, 2, 1, 151936, True, 256),
    "3b": (36, 2048, 11008, 16, 2, 151936, True, 3420),
    "7b": (28, 3584, 18944, 28, 4, 152064, False, 3420),
    "32b": (64, 5120, 27648, 40, 8, 152064, False, 3456),
    "72b": (80, 8192, 29568, 64, 8, 152064, False, 3456),
}
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "chat_template.json",
                   "chat_template.jinja", "special_tokens_map.json", "added_tokens.json")
BLOCK = 16777213  # random values made once, read as a ring by every tensor; prime, so that rows do not repeat


def text_config(size):
    layers, hidden, intermediate, heads, kv_heads, vocab, tied, _ = size
    return {
        "attention_dropout": 0.0, "bos_token_id": 151643, "eos_token_id": 151645, "hidden_act": "silu",
        "hidden_size": hidden, "initializer_range": 0.02, "intermediate_size": intermediate,
        "max_position_embeddings": 128000, "max_window_layers": layers, "num_attention_heads": heads,
        "num_hidden_layers": layers, "num_key_value_heads": kv_heads, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0,
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}, "sliding_window": 32768,
        "tie_word_embeddings": tied, "use_cache": True, "use_sliding_window": False, "vocab_size": vocab,
    }


def config(size, nested):
    vision = {
        "depth": 32, "fullatt_block_indexes": [7, 15, 23, 31], "hidden_act": "silu", "hidden_size": 1280,
        "in_chans": 3, "intermediate_size": size[7], "num_heads": 16, "out_hidden_size": size[1], "patch_size": 14,
        "spatial_merge_size": 2, "spatial_patch_size": 14, "temporal_patch_size": 2, "tokens_per_second": 2,
        "window_size": 112,
    }
    if size[0] < 8:
        vision.update(depth=4, fullatt_block_indexes=[3], hidden_size=320, num_heads=4)
    outer = {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"], "image_token_id": 151655, "model_type": "qwen2_5_vl",
        "torch_dtype": "bfloat16", "video_token_id": 151656, "vision_config": vision, "vision_end_token_id": 151653,
        "vision_start_token_id": 151652, "vision_token_id": 151654,
    }
    text = text_config(size)
    if not nested:
        return {**outer, **text}
    text["rope_parameters"] = {**text.pop("rope_scaling"), "rope_theta": text.pop("rope_theta"),
                               "rope_type": "default", "type": "default"}
    text["layer_types"] = ["full_attention"] * size[0]
    text["sliding_window"] = None
    return {**outer, "text_config": text, "tie_word_embeddings": size[6]}


def tensors(size, vision, nested):
    """Names and shapes in the order of the hub's files."""
    layers, hidden, intermediate, heads, kv_heads, vocab, tied, _ = size
    kv = hidden // heads * kv_heads
    text, visual = ("model.language_model.", "model.visual.") if nested else ("model.", "visual.")

    def linear(name, rows, cols, bias=True):
        yield name + ".weight", (rows, cols)
        if bias:
            yield name + ".bias", (rows,)

    width, ffn = vision["hidden_size"], vision["intermediate_size"]
    yield visual + "patch_embed.proj.weight", (width, 3, 2, 14, 14)
    for i in range(vision["depth"]):
        block = f"{visual}blocks.{i}."
        yield block + "norm1.weight", (width,)
        yield block + "norm2.weight", (width,)
        yield from linear(block + "attn.qkv", 3 * width, width)
        yield from linear(block + "attn.proj", width, width)
        yield from linear(block + "mlp.gate_proj", ffn, width)
        yield from linear(block + "mlp.up_proj", ffn, width)
        yield from linear(block + "mlp.down_proj", width, ffn)
    yield visual + "merger.ln_q.weight", (width,)
    yield from linear(visual + "merger.mlp.0", 4 * width, 4 * width)
    yield from linear(visual + "merger.mlp.2", hidden, 4 * width)

    yield text + "embed_tokens.weight", (vocab, hidden)
    for i in range(layers):
        layer = f"{text}layers.{i}."
        yield layer + "input_layernorm.weight", (hidden,)
        yield layer + "post_attention_layernorm.weight", (hidden,)
        yield from linear(layer + "self_attn.q_proj", hidden, hidden)
        yield from linear(layer + "self_attn.k_proj", kv, hidden)
        yield from linear(layer + "self_attn.v_proj", kv, hidden)
        yield from linear(layer + "self_attn.o_proj", hidden, hidden, bias=False)
        yield from linear(layer + "mlp.gate_proj", intermediate, hidden, bias=False)
        yield from linear(layer + "mlp.up_proj", intermediate, hidden, bias=False)
        yield from linear(layer + "mlp.down_proj", hidden, intermediate, bias=False)
    yield text + "norm.weight", (hidden,)
    if not tied:
        yield "lm_head.weight", (vocab, hidden)


def bf16_bits(values):
    """Of float32, rounded to nearest even."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def random_block(seed):
    return bf16_bits(np.random.default_rng(seed).standard_normal(BLOCK, dtype=np.float32) * np.float32(0.02))


def ring_filler(seed):
    """Weights of norms are 1, all else comes from the block, from a place that the name chooses."""
    block = random_block(seed)

    def fill(out, name, shape):
        count = int(np.prod(shape))
        if name.endswith("weight") and ("norm" in name or "ln_q" in name):
            out.write(np.full(count, 0x3F80, np.uint16))
            return
        at = zlib.crc32(name.encode()) % BLOCK
        while count > 0:
            piece = block[at:at + count]
            out.write(piece)
            count -= piece.size
            at = 0

    return fill


def write_file(path, entries, fill):
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in entries:
        size = 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        for name, shape in entries:
            fill(out, name, shape)
    return offset


def split(entries, shards):
    """Consecutive runs of near equal size."""
    total = sum(int(np.prod(shape)) for _, shape in entries)
    parts, done = [[] for _ in range(shards)], 0
    for entry in entries:
        parts[min(shards - 1, done * shards // total)].append(entry)
        done += int(np.prod(entry[1]))
    return [part for part in parts if part]


def write_json(path, value):
    path.write_text(json.dumps(value, indent=2) + "\n")


def write_tensors(folder, entries, shards, fill):
    """The safetensors files and, of more than one, their index. fill(out, name, shape) writes the BF16 values."""
    parts = split(entries, shards)
    names = ["model.safetensors"] if len(parts) == 1 else [
        f"model-{i + 1:05d}-of-{len(parts):05d}.safetensors" for i in range(len(parts))]
    total = sum(write_file(folder / name, part, fill) for name, part in zip(names, parts))
    if len(parts) > 1:
        write_json(folder / "model.safetensors.index.json", {
            "metadata": {"total_size": total},
            "weight_map": {tensor: name for name, part in zip(names, parts) for tensor, _ in part}})
    print(f"{folder}: {len(entries)} tensors, {total / 1e9:.2f} GB, {len(parts)} file(s)")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--size", choices=SIZES, default="3b")
    parser.add_argument("--shards", type=int, default=1)
    parser.add_argument("--nested", action="store_true", help="layout and tensor names of transformers 4.52 and later")
    parser.add_argument("--tokenizer", type=pathlib.Path, help="folder to copy the tokenizer's files from")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    size = SIZES[args.size]
    args.out.mkdir(parents=True, exist_ok=True)
    for name in TOKENIZER_FILES:
        if args.tokenizer and (args.tokenizer / name).exists():
            shutil.copy(args.tokenizer / name, args.out / name)

    settings = config(size, args.nested)
    write_json(args.out / "config.json", settings)
    write_json(args.out / "generation_config.json", {
        "bos_token_id": 151643, "do_sample": False, "eos_token_id": [151645, 151643], "pad_token_id": 151643,
        "repetition_penalty": 1.05})
    write_json(args.out / "preprocessor_config.json", {
        "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_processor_type": "Qwen2VLImageProcessor",
        "image_std": [0.26862954, 0.26130258, 0.27577711], "max_pixels": 12845056, "merge_size": 2,
        "min_pixels": 3136, "patch_size": 14, "processor_class": "Qwen2_5_VLProcessor", "temporal_patch_size": 2})

    entries = list(tensors(size, settings["vision_config"], args.nested))
    write_tensors(args.out, entries, args.shards, ring_filler(args.seed))


if __name__ == "__main__":
    main()
