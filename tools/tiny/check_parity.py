"""Compares the packed model and preprocessing with transformers on samples of every kind.

python tools/tiny/check_parity.py --model models/tiny-qwen2.5-vl
"""

import argparse
import json
import sys

import numpy as np
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

import packing
import preprocess
import scenes
from model import Model
from score import Reference


def messages(sample):
    out = [{"role": "system", "content": sample["system"]}] if sample["system"] is not None else []
    for content, answer in sample["turns"]:
        parts = [{"type": p} if p in ("image", "video") else {"type": "text", "text": p} for p in content]
        out += [
            {"role": "user", "content": parts},
            {"role": "assistant", "content": [{"type": "text", "text": answer}]},
        ]
    return out


def media(sample):
    """Clips are resized here by Pillow, since transformers resizes frames with torchvision (one grey level apart)."""
    if not sample["video"]:
        return sample["images"], None, None
    return [], [preprocess.resize(frame, scenes.LIMITS) for frame in sample["images"]], sample["fps"]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--samples", type=int, default=24)
    args = parser.parse_args()
    torch.set_num_threads(1)
    tokenizer = Tokenizer.from_file(args.model + "/tokenizer.json")
    reference = Reference(args.model, torch.float32)
    ours = Model(json.load(open(args.model + "/config.json")))
    weights = load_file(args.model + "/model.safetensors")
    ours.load_state_dict({k: v.float() for k, v in weights.items()})
    ours.eval()
    special = {k: tokenizer.token_to_id(f"<|{k}|>") for k in ("image_pad", "video_pad")}
    worst = 0.0
    for i in range(args.samples):
        rng = np.random.default_rng([77, i])
        sample = scenes.training_sample(rng)
        if sample["system"] is None:
            sample["system"] = "You are a helpful assistant."
        record = packing.record(sample, tokenizer)
        block = packing.Block([record])
        batch = packing.gather([(block, 0, 0)], special, torch.from_numpy(block.data["pixels"]), "cpu")
        inputs = reference.inputs(messages(sample), *media(sample))
        assert inputs["input_ids"][0].tolist() == record["ids"].tolist(), "prompt ids differ"
        with torch.no_grad():
            theirs = reference.model(**inputs).logits[0][batch["asked"]]
            logits = ours(batch, torch.float32)
        error = (theirs - logits).abs().max().item()
        worst = max(worst, error)
        print(f"{i:3d} {sample['kinds'][0]:12s} tokens {len(record['ids']):4d}  max |logit difference| {error:.2e}")
    print(f"worst {worst:.2e}")
    sys.exit(worst > 1e-4)


if __name__ == "__main__":
    main()
