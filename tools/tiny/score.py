"""Answers held-out questions with the reference of the model, greedily, and counts right answers: exact ones, and for
boxes the right name and number of boxes that overlap by half.

    python tools/tiny/score.py --model models/tiny-qwen2.5-vl --data DIR [--dtype bfloat16]

With --keep N the data folder is reduced to the first N rightly answered questions of each kind.
"""

import argparse
import json
import shutil
from collections import defaultdict
from pathlib import Path

import torch
from PIL import Image

import grounding
import references


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--keep", type=int)
    args = parser.parse_args()
    torch.set_num_threads(1)
    reference = references.of(args.model, getattr(torch, args.dtype))
    questions = [json.loads(line) for line in open(args.data / "questions.jsonl")]
    right, total, kept = defaultdict(int), defaultdict(int), []
    for q in questions:
        load = lambda paths: [Image.open(args.data / p) for p in paths]
        got = reference.answer(q["prompt"], load(q["images"]), load(q["video"] or []), q["fps"], q["history"])
        total[q["kind"]] += 1
        if got == q["answer"] or (q["kind"] == "grounding" and grounding.right(got, q["answer"])):
            right[q["kind"]] += 1
            if args.keep and right[q["kind"]] <= args.keep:
                kept.append(q)
        else:
            print(f"{q['id']}: {q['prompt']!r} expected {q['answer']!r}, got {got!r}", flush=True)
    for kind in total:
        print(f"{kind:12s} {right[kind]:4d} / {total[kind]:4d}  {100 * right[kind] / total[kind]:.1f} %")
    print(
        f"{'overall':12s} {sum(right.values()):4d} / {sum(total.values()):4d}  {100 * sum(right.values()) / sum(total.values()):.1f} %"
    )
    if args.keep:
        for q in questions:
            if q not in kept:
                for path in q["images"]:
                    (args.data / path).unlink()
                if q["video"]:
                    shutil.rmtree((args.data / q["video"][0]).parent)
        (args.data / "questions.jsonl").write_text("".join(json.dumps(q) + "\n" for q in kept))


if __name__ == "__main__":
    main()
