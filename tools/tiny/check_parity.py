"""Compares a packed model and its preprocessing with the reference on samples of every kind.

python tools/tiny/check_parity.py --model models/tiny-qwen2.5-vl
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

import batches
import families
import references
import scenes


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True, type=Path)
    parser.add_argument("--samples", type=int, default=24)
    args = parser.parse_args()
    torch.set_num_threads(1)
    reference = references.of(args.model, torch.float32)
    family = families.use(reference.family)
    tokenizer = Tokenizer.from_file(str(args.model / "tokenizer.json"))
    layout = family.packing.layout(tokenizer)
    ours = family.model.Model(json.loads((args.model / "config.json").read_text())).eval()
    ours.load_published({k: v.float() for k, v in load_file(args.model / "model.safetensors").items()})
    worst = 0.0
    for i in range(args.samples):
        sample = scenes.training_sample(np.random.default_rng([77, i]))
        if sample["system"] is None:
            sample["system"] = scenes.STYLE.system
        record = family.packing.record(sample, tokenizer)
        block = batches.Block([record])
        batch = batches.gather([(block, 0, 0)], layout, torch.from_numpy(block.data["pixels"]), "cpu")
        theirs = reference.logits(sample, record["ids"].tolist())[batch["asked"]]
        with torch.no_grad():
            logits = ours(batch, torch.float32)
        error = (theirs - logits).abs().max().item()
        worst = max(worst, error)
        print(f"{i:3d} {sample['kinds'][0]:12s} tokens {len(record['ids']):4d}  max |logit difference| {error:.2e}")
    print(f"worst {worst:.2e}")
    sys.exit(worst > 1e-4)


if __name__ == "__main__":
    main()
