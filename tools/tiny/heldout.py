"""Writes held-out questions as files: pictures (PNG), clips (folders of PNG frames) and questions.jsonl.

    python tools/tiny/heldout.py --out DIR --per-kind 50 [--model deepseek-vl2]

A line of questions.jsonl: id, kind, images (paths), video (frame paths, or null), fps (or null), prompt, answer, and
history (earlier turns of the conversation; the pictures belong to its first turn). Handwriting comes from the digits
that training never sees.
"""

import argparse
import io
import json
from pathlib import Path

import numpy as np

import families
import scenes


def png(image):
    data = io.BytesIO()
    image.save(data, "PNG", optimize=True)
    return data.getvalue()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", choices=list(families.PACKAGES), default="qwen2.5-vl")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--per-kind", type=int, default=50)
    parser.add_argument("--seed", type=int, default=2)
    parser.add_argument(
        "--max-bytes", type=int, default=1 << 30, help="leave out questions with more bytes of pictures"
    )
    args = parser.parse_args()
    families.use(args.model)
    args.out.mkdir(parents=True, exist_ok=True)
    with open(args.out / "questions.jsonl", "w") as lines:
        for k, kind in enumerate(scenes.STYLE.kinds):
            done, i = 0, 0
            while done < args.per_kind:
                sample = scenes.held_out_sample(np.random.default_rng([args.seed, 3, k, i]), kind)
                i += 1
                files = [png(image) for image in sample["images"]]
                if sum(map(len, files)) > args.max_bytes:
                    continue
                name = f"{kind}-{done:03d}"
                if sample["video"]:
                    (args.out / name).mkdir(exist_ok=True)
                    paths = [f"{name}/{f:02d}.png" for f in range(len(files))]
                else:
                    paths = [f"{name}.png" if len(files) == 1 else f"{name}-{f + 1}.png" for f in range(len(files))]
                for path, data in zip(paths, files):
                    (args.out / path).write_bytes(data)
                turns = [(content[-1], answer) for content, answer in sample["turns"]]
                line = {
                    "id": name,
                    "kind": kind,
                    "images": [] if sample["video"] else paths,
                    "video": paths if sample["video"] else None,
                    "fps": sample["fps"],
                    "prompt": turns[-1][0],
                    "answer": turns[-1][1],
                    "history": [{"prompt": q, "answer": a} for q, a in turns[:-1]],
                }
                lines.write(json.dumps(line) + "\n")
                done += 1


if __name__ == "__main__":
    main()
