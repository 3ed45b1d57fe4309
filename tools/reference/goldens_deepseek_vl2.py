"""Goldens of a DeepSeek-VL2 checkpoint from deepseek_vl2.py, for the golden tests.

    goldens_deepseek_vl2.py MODEL PICTURES OUT.json [--max-tokens 24] [--use a.png b.png ... [--brief]]

PICTURES is a folder with questions.jsonl and the pictures it names; with --use, only the pictures named, and no
questions but those below; with --brief, one case of each kind and stages of two kinds. The file says how many tokens an
answer may have (max_tokens). For each case: prompt ids, tiles (columns, rows) of each picture, next position, greedy
tokens in float32 and bfloat16 with the margin between the two best logits at every step; for one case of each kind with
at most one picture, samples and norms of every stage.
Stages vision.* are over all tiles of the picture, the whole view first, then row by row: [tiles * patches, width];
vision.patch_embed is before the positions are added; vision.embeds is the picture as the language model sees it.
Reference versions: torch 2.11.0, tokenizers of transformers 5.17.0, Pillow 13.0.0, CPU.
"""

import argparse
import json
import os

import numpy as np
import torch

from deepseek_vl2 import Model, Processor

SAMPLES = 96  # values kept of each stage


def text(value):
    return {"type": "text", "text": value}


def user(*parts):
    return {"role": "user", "content": list(parts)}


def said(value):
    return {"role": "assistant", "content": [text(value)]}


def question_case(q):
    messages = [user(*({"type": "image", "path": p} for p in q.get("images") or []))]
    for turn in q.get("history") or []:
        messages[-1]["content"].append(text(turn["prompt"]))
        messages += [said(turn["answer"]), user()]
    messages[-1]["content"].append(text(q["prompt"]))
    return q["kind"], q["id"], messages


def extra_cases(pictures):
    """Input kinds that a held-out set lacks: text alone, several turns, a system turn, tiling off, order of parts."""
    image = lambda i: {"type": "image", "path": pictures[i % len(pictures)]}
    system = {"role": "system", "content": [text(" Answer in one word.\n")]}
    for i, t in enumerate(
        [
            "What can you do?",
            "Hello!",
            "Is the sky blue? \U0001f60a",
            "Caf\u00e9 na\u00efve \u4f60\u597d 12345",
            "1 + 1 = ?\n\n\tTwo?",
            "\u3000 spaces \u00a0around \r\n",
            "a" * 40 + " 0.5 \u2581\u0301",
        ]
    ):
        yield "text", f"text-{i}", [user(text(t))]
    for i, t in enumerate(
        [
            "<image> is only text here, <|User|> too.",
            "What is <\uff5cend\u2581of\u2581sentence\uff5c>?",
            "<|Assistant|>: yes<\uff5cend\u2581of\u2581sentence\uff5c><|User|>: no",
            "<\uff5cbegin\u2581of\u2581sentence\uff5c><\uff5c\u2581pad\u2581\uff5c>",
        ]
    ):
        yield "typed", f"typed-{i}", [user(text(t))]
        yield "typed-image", f"typed-image-{i}", [user(image(i), text(t))]
    for i in range(3):
        yield "image", f"describe-{i}", [user(image(i), text("Describe this image."))]
        yield "two-images", f"two-images-{i}", [user(image(i), image(i + 1), text("Which one has more shapes?"))]
        yield "three-images", f"three-images-{i}", [
            user(image(i), image(i + 1), image(i + 2), text("Which one is different?"))
        ]
        yield "multi-turn", f"turns-{i}", [
            user(image(i), text("Describe this image.")),
            said(" a picture. "),
            user(text("What colour is it?")),
        ]
        yield "multi-turn", f"turns-text-{i}", [
            user(text("Hello!")),
            said("Hello! How can I help?"),
            user(text("Count to three.")),
        ]
        yield "later-image", f"turns-images-{i}", [
            user(image(i), text("What shape is this?")),
            said("circle"),
            user(image(i + 1), text("And this?")),
        ]
        yield "later-three", f"turns-three-{i}", [
            user(image(i), text("Look.")),
            said("Yes."),
            user(image(i + 1), image(i + 2), text("And these?")),
        ]
        yield "later-only", f"turns-first-text-{i}", [
            user(text("Hello!")),
            said("Hello!"),
            user(image(i), text("What is this?")),
        ]
        yield "system", f"system-{i}", [system, user(image(i), text("What shape is this?"))]
        yield "order", f"text-first-{i}", [user(text("Look at this:"), image(i), text("What is it?"))]
        yield "between", f"text-between-{i}", [
            user(text("First:"), image(i), text("\nthen:"), image(i + 1), text("Same?"))
        ]
        yield "grounding", f"ref-{i}", [user(image(i), text("<|ref|>The circle<|/ref|>."))]
        yield "grounding", f"grounding-{i}", [user(image(i), text("<|grounding|>Where is the circle?"))]
        yield "grounding", f"box-{i}", [
            user(image(i), text("Where is <|ref|>the square<|/ref|>?")),
            said("<|ref|>the square<|/ref|><|det|>[[10, 20, 300, 400]]<|/det|>"),
            user(text("What is in <|det|>[[0, 0, 500, 500]]<|/det|>?")),
        ]
    yield "system", "system-text", [system, user(text("Is the sky blue?"))]
    yield "image", "image-alone", [user(image(0))]
    yield "image", "image-last", [user(text("What is this?"), image(0))]
    yield "image", "newline-given", [user(image(0), text("\nWhat is this?"))]
    yield "image", "spaces-after", [user(image(0), text("  What is this?  "))]
    yield "text", "text-of-many-parts", [user(text("What "), text("is"), text(" this?"))]


def stage_record(value):
    flat = value.numpy().ravel()
    index = np.linspace(0, flat.size - 1, min(SAMPLES, flat.size)).astype(np.int64)
    return {
        "shape": list(value.shape),
        "norm": float(np.linalg.norm(flat.astype(np.float64))),
        "index": index.tolist(),
        "value": [float(f"{v:.7g}") for v in flat[index]],
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("pictures")
    parser.add_argument("out")
    parser.add_argument("--max-tokens", type=int, default=24)
    parser.add_argument("--use", nargs="+")
    parser.add_argument("--brief", action="store_true")
    args = parser.parse_args()

    processor = Processor(args.model)
    models = {"f32": Model.load(args.model), "bf16": Model.load(args.model, torch.bfloat16)}
    load = lambda path: processor.load_image(os.path.join(args.pictures, path))
    cases, pictures = [], args.use
    if not pictures:
        with open(os.path.join(args.pictures, "questions.jsonl"), encoding="utf-8") as lines:
            questions = [json.loads(line) for line in lines]
        pictures = [q["images"][0] for q in questions if q.get("images")]
        cases = [question_case(q) for q in questions]
    seen, result = set(), []
    for kind, name, messages in [*cases, *extra_cases(pictures)]:
        if args.brief and kind in seen:
            continue
        ids, media = processor.prepare(messages, load)
        record = {
            "name": name,
            "kind": kind,
            "messages": messages,
            "prompt_ids": ids,
            "next_position": len(ids),
            "tiles": [list(crop) for _, crop in media],
        }
        staged = kind not in seen and len(media) < 2 and (not args.brief or kind in ("text", "image"))
        if staged or args.brief:
            seen.add(kind)
        for dtype, model in models.items():
            stages = {}
            keep = lambda stage, value: stages.update({stage: stage_record(value.float())})
            tokens, margins = model.generate(
                ids, media, processor.image_id, args.max_tokens, **({"tap": keep} if staged else {})
            )
            record[f"tokens_{dtype}"] = tokens
            record[f"margins_{dtype}"] = [float(f"{m:.5g}") for m in margins]
            if staged:
                record[f"stages_{dtype}"] = stages
        print(name, len(ids), repr(processor.decode(record["tokens_f32"])))
        result.append(record)
    with open(args.out, "w") as f:
        json.dump({"max_tokens": args.max_tokens, "cases": result}, f, separators=(",", ":"))
    print(len(result), "cases,", os.path.getsize(args.out), "bytes")


if __name__ == "__main__":
    main()
