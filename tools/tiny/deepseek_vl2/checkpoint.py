"""The tiny DeepSeek-VL2's shape and its folder of files, in the published layout."""

import json
from pathlib import Path

from . import tokenizer as bpe
from .preprocess import CANDIDATES, DOWNSAMPLE, IMAGE_SIZE, PATCH

VOCAB = 800  # tokenizer entries, padded as the published checkpoints pad
END = bpe.EOS


def config(tok):
    return {
        "architectures": ["DeepseekVLV2ForCausalLM"],
        "candidate_resolutions": CANDIDATES,
        "global_view_pos": "head",
        "language_config": {
            "architectures": ["DeepseekV2ForCausalLM"],
            "attention_bias": False,
            "bos_token_id": tok.token_to_id(bpe.BOS),
            "eos_token_id": tok.token_to_id(bpe.EOS),
            "first_k_dense_replace": 1,
            "hidden_act": "silu",
            "hidden_size": 256,
            "intermediate_size": 640,
            "kv_lora_rank": 96,
            "lm_head": True,
            "max_position_embeddings": 4096,
            "model_type": "deepseek_v2",
            "moe_intermediate_size": 56,
            "moe_layer_freq": 1,
            "n_group": 1,
            "n_routed_experts": 16,
            "n_shared_experts": 2,
            "norm_topk_prob": False,
            "num_attention_heads": 4,
            "num_experts_per_tok": 4,
            "num_hidden_layers": 5,
            "num_key_value_heads": 4,
            "q_lora_rank": None,
            "qk_nope_head_dim": 32,
            "qk_rope_head_dim": 32,
            "rm_head": False,
            "rms_norm_eps": 1e-06,
            "rope_theta": 10000.0,
            "routed_scaling_factor": 1.0,
            "scoring_func": "softmax",
            "tie_word_embeddings": False,
            "topk_group": 1,
            "topk_method": "greedy",
            "torch_dtype": "bfloat16",
            "use_mla": True,
            "v_head_dim": 48,
            "vocab_size": VOCAB,
        },
        "model_type": "deepseek_vl_v2",
        "projector_config": {
            "depth": 2,
            "downsample_ratio": DOWNSAMPLE,
            "input_dim": 192,
            "mlp_ratio": 1,
            "model_type": "mlp_projector",
            "n_embed": 256,
            "projector_type": "downsample_mlp_gelu",
        },
        "tile_tag": "2D",
        "torch_dtype": "bfloat16",
        "vision_config": {
            "heads": 8,
            "image_size": IMAGE_SIZE,
            "layers": 6,
            "mlp_ratio": 3.7362,
            "model_name": f"siglip_tiny_patch{PATCH}_{IMAGE_SIZE}",
            "model_type": "vision",
            "patch_size": PATCH,
            "width": 192,
        },
    }


def write_files(folder: Path, tokenizer_file=None):
    """Everything but the weights; the tokenizer is learnt anew unless a file is given. Returns the tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    tok = bpe.write(folder, tokenizer_file)
    assert tok.get_vocab_size() <= VOCAB
    processor = {
        "add_special_token": False,
        "candidate_resolutions": CANDIDATES,
        "downsample_ratio": DOWNSAMPLE,
        "ignore_id": -100,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "image_token": "<image>",
        "mask_prompt": False,
        "normalize": True,
        "pad_token": bpe.PAD,
        "patch_size": PATCH,
        "processor_class": "DeepseekVLV2Processor",
        "sft_format": "deepseek",
    }
    for name, value in (("config.json", config(tok)), ("processor_config.json", processor)):
        (folder / name).write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
    return tok
