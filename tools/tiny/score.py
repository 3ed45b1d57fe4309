"""Answers held-out questions with transformers, greedily, and counts exact matches.

    python tools/tiny/score.py --model models/tiny-qwen2.5-vl --data DIR [--dtype bfloat16]

With --keep N the data folder is reduced to the first N rightly answered questions of each kind.
"""

import argparse
import json
import shutil
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil


class Reference:
    """transformers' model and processor (with Pillow's resize) behind one call."""

    def __init__(self, folder, dtype):
        self.processor = AutoProcessor.from_pretrained(folder)
        self.processor.image_processor = Qwen2VLImageProcessorPil.from_pretrained(folder)
        self.model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=dtype).eval()

    def inputs(self, chat, images=(), video=None, fps=None, generate=False):
        text = self.processor.apply_chat_template(chat, tokenize=False, add_generation_prompt=generate)
        arguments = {}
        if video:
            n = len(video)
            meta = {"total_num_frames": n, "fps": fps, "frames_indices": list(range(n)), "duration": n / fps}
            arguments = {
                "videos": [np.stack([np.asarray(f.convert("RGB")) for f in video])],
                "video_metadata": [meta],
                "do_sample_frames": False,
                "cap_pixels_per_frame": False,
            }
        elif images:
            arguments = {"images": [image.convert("RGB") for image in images]}
        return self.processor(text=[text], return_tensors="pt", **arguments)

    @torch.no_grad()
    def answer(self, prompt, images=(), video=None, fps=None, history=()):
        media = [{"type": "video"}] if video else [{"type": "image"}] * len(images)
        chat = []
        for turn in history:
            chat += [
                {"role": "user", "content": media + [{"type": "text", "text": turn["prompt"]}]},
                {"role": "assistant", "content": [{"type": "text", "text": turn["answer"]}]},
            ]
            media = []
        chat.append({"role": "user", "content": media + [{"type": "text", "text": prompt}]})
        inputs = self.inputs(chat, images, video, fps, generate=True)
        out = self.model.generate(**inputs, max_new_tokens=64)[0, inputs["input_ids"].shape[1] :]
        return self.processor.tokenizer.decode(out, skip_special_tokens=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--keep", type=int)
    args = parser.parse_args()
    torch.set_num_threads(1)
    reference = Reference(args.model, getattr(torch, args.dtype))
    questions = [json.loads(line) for line in open(args.data / "questions.jsonl")]
    right, total, kept = defaultdict(int), defaultdict(int), []
    for q in questions:
        load = lambda paths: [Image.open(args.data / p) for p in paths]
        got = reference.answer(q["prompt"], load(q["images"]), load(q["video"] or []), q["fps"], q["history"])
        total[q["kind"]] += 1
        if got == q["answer"]:
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
