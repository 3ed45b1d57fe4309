"""The tiny model's shape and its folder of Hugging Face files."""

import json
from pathlib import Path

from . import tokenizer as bpe

MIN_PIXELS = 112 * 112
MAX_PIXELS = 280 * 224
VOCAB = 800  # tokenizer entries, padded as the published checkpoints pad


def ids(tok):
    return {t: tok.token_to_id(t) for t in bpe.SPECIAL}


def config(tok):
    special = ids(tok)
    return {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "attention_dropout": 0.0,
        "bos_token_id": special["<|endoftext|>"],
        "eos_token_id": special["<|im_end|>"],
        "vision_start_token_id": special["<|vision_start|>"],
        "vision_end_token_id": special["<|vision_end|>"],
        "vision_token_id": special["<|vision_pad|>"],
        "image_token_id": special["<|image_pad|>"],
        "video_token_id": special["<|video_pad|>"],
        "hidden_act": "silu",
        "hidden_size": 256,
        "initializer_range": 0.02,
        "intermediate_size": 512,
        "max_position_embeddings": 4096,
        "max_window_layers": 4,
        "model_type": "qwen2_5_vl",
        "num_attention_heads": 4,
        "num_hidden_layers": 4,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "sliding_window": 4096,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "use_sliding_window": False,
        "vision_config": {
            "depth": 6,
            "hidden_act": "silu",
            "hidden_size": 192,
            "intermediate_size": 448,
            "num_heads": 6,
            "in_chans": 3,
            "out_hidden_size": 256,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "spatial_patch_size": 14,
            "window_size": 112,
            "fullatt_block_indexes": [2, 5],
            "tokens_per_second": 2,
            "temporal_patch_size": 2,
            "model_type": "qwen2_5_vl",
        },
        "rope_scaling": {"type": "mrope", "mrope_section": [8, 12, 12]},
        "vocab_size": VOCAB,
    }


def write_json(path: Path, value):
    path.write_text(json.dumps(value, indent=2) + "\n")


def write_files(folder: Path, tokenizer_file=None):
    """Everything but the weights; the tokenizer is learnt anew unless a file is given. Returns the tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    tok = bpe.write(folder, tokenizer_file)
    special = ids(tok)
    assert tok.get_vocab_size() <= VOCAB
    write_json(folder / "config.json", config(tok))
    write_json(
        folder / "generation_config.json",
        {
            "bos_token_id": special["<|endoftext|>"],
            "pad_token_id": special["<|endoftext|>"],
            "do_sample": False,
            "eos_token_id": [special["<|im_end|>"], special["<|endoftext|>"]],
            "repetition_penalty": 1.0,
        },
    )
    write_json(
        folder / "preprocessor_config.json",
        {
            "min_pixels": MIN_PIXELS,
            "max_pixels": MAX_PIXELS,
            "patch_size": 14,
            "temporal_patch_size": 2,
            "merge_size": 2,
            "image_mean": [0.48145466, 0.4578275, 0.40821073],
            "image_std": [0.26862954, 0.26130258, 0.27577711],
            "image_processor_type": "Qwen2VLImageProcessor",
            "processor_class": "Qwen2_5_VLProcessor",
        },
    )
    return tok
