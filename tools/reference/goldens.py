"""Goldens of a Qwen2.5-VL checkpoint from transformers, for tests/models/golden_test.cpp.

usage: goldens.py MODEL HELDOUT_DIR OUT.json
  HELDOUT_DIR holds questions.jsonl and the pictures it names (tests/data/tiny_heldout).

The file says how many tokens an answer may have (max_tokens). For each case: prompt ids, next position, greedy tokens in
float32 and bfloat16 with the reference's margin between its two best logits at every step; for some cases every position,
and samples and norms of every stage.
Reference versions: torch 2.11.0, transformers 5.17.0, Pillow processor, attention "sdpa", CPU.
"""
import json
import os
import sys

import numpy as np
import torch
from PIL import Image, ImageOps
from tokenizers import Tokenizer
from transformers import AutoTokenizer, Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

MODEL, HELDOUT, OUT = sys.argv[1:4]
MAX_NEW_TOKENS = 24
SAMPLES = 96  # values kept of each stage

tokenizer = AutoTokenizer.from_pretrained(MODEL)
processor = Qwen2VLImageProcessorPil.from_pretrained(MODEL)
template = json.load(open(os.path.join(MODEL, "chat_template.json")))["chat_template"]
config = json.load(open(os.path.join(MODEL, "config.json")))
IMAGE, VIDEO = config["image_token_id"], config["video_token_id"]


def text(value):
    return {"type": "text", "text": value}


def question_case(q):
    content = [{"type": "image", "path": p} for p in q.get("images") or []]
    if q.get("video"):
        content.append({"type": "video", "frames": q["video"], "fps": q["fps"]})
    messages = [{"role": "user", "content": content}]
    for turn in q.get("history") or []:
        messages[-1]["content"].append(text(turn["prompt"]))
        messages += [{"role": "assistant", "content": [text(turn["answer"])]}, {"role": "user", "content": []}]
    messages[-1]["content"].append(text(q["prompt"]))
    return {"name": q["id"], "kind": q["kind"], "messages": messages}


def extra_cases(questions):
    """Input kinds that the held-out set lacks: text alone, several turns, a system turn, many pictures, order of parts."""
    pictures = [q["images"][0] for q in questions if q.get("images")]
    clips = [q for q in questions if q.get("video")]
    user = lambda *parts: {"role": "user", "content": list(parts)}
    image = lambda i: {"type": "image", "path": pictures[i % len(pictures)]}
    video = lambda i: {"type": "video", "frames": clips[i % len(clips)]["video"], "fps": clips[i % len(clips)]["fps"]}
    said = lambda t: {"role": "assistant", "content": [text(t)]}
    cases = []
    for i, t in enumerate(["What can you do?", "Hello!", "Is the sky blue? \U0001F60A", "Caf\u00e9 na\u00efve \u4f60\u597d 12345",
                           "<|im_end|> is only text here, <|image_pad|> too."]):
        cases.append(("text", f"text-{i}", [user(text(t))]))
    for i in range(3):
        cases.append(("multi-turn", f"turns-{i}", [user(image(i), text("Describe this image.")), said("a picture."),
                                                   user(text("What colour is it?"))]))
        cases.append(("multi-turn", f"turns-images-{i}", [user(image(i), text("What shape is this?")), said("circle"),
                                                          user(image(i + 1), text("And this?"))]))
    for i in range(3):
        cases.append(("system", f"system-{i}", [{"role": "system", "content": [text("Answer in one word.")]},
                                                user(image(i + 5), text("What shape is this?"))]))
        cases.append(("images", f"three-images-{i}", [user(image(i), image(i + 3), image(i + 6), text("Which one has more shapes?"))]))
        cases.append(("order", f"text-first-{i}", [user(text("Look at this:"), image(i + 2), text("What is it?"))]))
        cases.append(("video", f"describe-clip-{i}", [user(video(i), text("Describe this video."))]))
    cases.append(("mixed", "image-and-clip", [user(image(0), video(0), text("What do you see?"))]))
    return [{"name": n, "kind": k, "messages": m} for k, n, m in cases]


def load(path):
    picture = ImageOps.exif_transpose(Image.open(os.path.join(HELDOUT, path)))
    return picture.convert("RGB")


def inputs_of(case):
    """input ids, pixels and grids as the processor makes them, pictures and frames through the Pillow path."""
    images, videos, seconds = [], [], []
    messages = []
    for m in case["messages"]:
        parts = []
        for p in m["content"]:
            if p["type"] == "image":
                out = processor(images=[load(p["path"])], return_tensors="pt")
                images.append((out["pixel_values"], out["image_grid_thw"]))
            elif p["type"] == "video":
                frames = [load(f) for f in p["frames"]]
                if len(frames) % 2:
                    frames.append(frames[-1])
                videos.append(video_patches(frames))
                seconds.append(2.0 / p["fps"])
            parts.append({k: v for k, v in p.items() if k in ("type", "text")})
        messages.append({"role": m["role"], "content": parts})
    rendered = tokenizer.apply_chat_template(escape(messages), chat_template=template, tokenize=False, add_generation_prompt=True)
    ids, kinds = [], []
    image_counts = [int(g.prod()) // 4 for _, g in images]
    video_counts = [int(g.prod()) // 4 for _, g in videos]
    for token in tokenizer.encode(rendered, add_special_tokens=False):
        kind = 1 if token == IMAGE else 2 if token == VIDEO else 0
        count = image_counts.pop(0) if kind == 1 else video_counts.pop(0) if kind == 2 else 1
        ids += [token] * count
        kinds += [kind] * count
    ids = unescape(ids)
    out = {"input_ids": torch.tensor([ids]), "mm_token_type_ids": torch.tensor([kinds]),
           "attention_mask": torch.ones(1, len(ids), dtype=torch.long)}
    if images:
        out["pixel_values"] = torch.cat([p for p, _ in images])
        out["image_grid_thw"] = torch.cat([g for _, g in images])
    if videos:
        out["pixel_values_videos"] = torch.cat([p for p, _ in videos])
        out["video_grid_thw"] = torch.cat([g for _, g in videos])
        out["second_per_grid_ts"] = torch.tensor(seconds)
    return out


def video_patches(frames):
    """Pairs of frames as patches, by the image processor's own arithmetic: one frame doubled is what it does with a picture."""
    slices = []
    for a, b in zip(frames[0::2], frames[1::2]):
        pa = processor(images=[a], return_tensors="pt")
        pb = processor(images=[b], return_tensors="pt")
        x = pa["pixel_values"].reshape(-1, 3, 2, 14, 14).clone()
        x[:, :, 1] = pb["pixel_values"].reshape(-1, 3, 2, 14, 14)[:, :, 1]
        slices.append(x.reshape(-1, 1176))
    grid = pa["image_grid_thw"].clone()
    grid[0, 0] = len(slices)
    return torch.cat(slices), grid


# Special tokens typed by a user must stay text. Each is replaced by a private-use character for the template, then by the
# ids of its text: the engine never lets user text become a special token.
SPECIAL = ["<|im_end|>", "<|image_pad|>"]


def escape(messages):
    for m in messages:
        for p in m["content"]:
            for i, s in enumerate(SPECIAL):
                if "text" in p and s in p["text"]:
                    raise_if_adjacent(p["text"], s)
                    p["text"] = p["text"].replace(s, chr(0xE000 + i))
    return messages


def raise_if_adjacent(value, special):
    """The replacement is exact only where the pre-tokenizer splits at both ends of the special text."""
    i = value.index(special)
    assert (i == 0 or value[i - 1].isspace()) and value[i + len(special)].isspace(), value


def unescape(ids):
    for i, s in enumerate(SPECIAL):
        mark = tokenizer.encode(chr(0xE000 + i), add_special_tokens=False)
        spaced = tokenizer.encode(" " + chr(0xE000 + i), add_special_tokens=False)
        plain, plain_spaced = typed(s), typed(" " + s)
        for needle, value in ((spaced, plain_spaced), (mark, plain)):
            for at in range(len(ids) - len(needle), -1, -1):
                if ids[at:at + len(needle)] == needle:
                    ids = ids[:at] + value + ids[at + len(needle):]
    return ids


def typed(value):
    raw = json.load(open(os.path.join(MODEL, "tokenizer.json")))
    raw["added_tokens"] = []
    return Tokenizer.from_str(json.dumps(raw)).encode(value, add_special_tokens=False).ids


class Stages:
    def __init__(self, model):
        self.values, inner = {}, model.model
        keep = lambda name: lambda module, args, out: self.add(name, out[0] if isinstance(out, tuple) else out)
        self.hooks = [inner.visual.patch_embed.register_forward_hook(keep("vision.patch_embed"))]
        self.hooks += [b.register_forward_hook(keep(f"vision.block.{i}")) for i, b in enumerate(inner.visual.blocks)]
        self.hooks += [l.register_forward_hook(keep(f"text.layer.{i}")) for i, l in enumerate(inner.language_model.layers)]
        self.hooks.append(inner.visual.register_forward_hook(lambda m, a, o: self.add("vision.merger", o.pooler_output)))
        self.hooks.append(inner.language_model.register_forward_pre_hook(
            lambda m, a, k: self.add("text.embed", k["inputs_embeds"][0]), with_kwargs=True))

    def add(self, name, value):
        self.values[name] = value.detach().float().reshape(-1, value.shape[-1])

    def close(self):
        for h in self.hooks:
            h.remove()


def stage_record(value):
    flat = value.numpy().ravel()
    index = np.linspace(0, flat.size - 1, min(SAMPLES, flat.size)).astype(np.int64)
    return {"shape": list(value.shape), "norm": float(np.linalg.norm(flat.astype(np.float64))),
            "index": index.tolist(), "value": [float(f"{v:.7g}") for v in flat[index]]}


def run(model, inputs, stages):
    dtype = next(model.parameters()).dtype
    inputs = {k: v.to(dtype) if k.startswith("pixel") else v for k, v in inputs.items()}
    model.model.rope_deltas = None
    record = {}
    if stages:
        s = Stages(model)
        with torch.no_grad():
            logits = model(**inputs, use_cache=False).logits[0, -1:].float()
        s.close()
        s.values["text.logits"] = logits
        for key in ("pixel_values", "pixel_values_videos"):
            if key in inputs:
                s.values["vision.patches"] = inputs[key].float()
        record = {n: stage_record(v) for n, v in s.values.items()}
        model.model.rope_deltas = None
    out = model.generate(**inputs, do_sample=False, max_new_tokens=MAX_NEW_TOKENS, return_dict_in_generate=True, output_logits=True)
    tokens = out.sequences[0, inputs["input_ids"].shape[1]:].tolist()
    margins = []
    for l in out.logits:
        best = l[0].float().topk(2).values
        margins.append(float(f"{(best[0] - best[1]).item():.5g}"))
    return tokens, margins, record


questions = [json.loads(l) for l in open(os.path.join(HELDOUT, "questions.jsonl"))]
cases = [question_case(q) for q in questions] + extra_cases(questions)
models = {d: Qwen2_5_VLForConditionalGeneration.from_pretrained(MODEL, dtype=t).eval() for d, t in
          (("f32", torch.float32), ("bf16", torch.bfloat16))}
seen, result = set(), []
for case in cases:
    inputs = inputs_of(case)
    record = dict(case)
    record["prompt_ids"] = inputs["input_ids"][0].tolist()
    media = {k: inputs[k] for k in ("image_grid_thw", "video_grid_thw", "second_per_grid_ts") if k in inputs}
    first = case["kind"] not in seen
    seen.add(case["kind"])
    if media:
        positions, _ = models["f32"].model.get_rope_index(inputs["input_ids"], inputs["mm_token_type_ids"], **media)
        positions = positions[:, 0]
        record["next_position"] = int(positions.max()) + 1
        if first:
            record["positions"] = positions.reshape(-1).tolist()
    else:
        record["next_position"] = len(record["prompt_ids"])
    for name, model in models.items():
        single_media = sum(p["type"] != "text" for m in case["messages"] for p in m["content"]) == 1
        tokens, margins, stages = run(model, dict(inputs), first and single_media)
        record[f"tokens_{name}"], record[f"margins_{name}"] = tokens, margins
        if stages:
            record[f"stages_{name}"] = stages
    print(case["name"], repr(tokenizer.decode(record["tokens_f32"])))
    result.append(record)
json.dump({"max_tokens": MAX_NEW_TOKENS, "cases": result}, open(OUT, "w"), separators=(",", ":"))
print(len(result), "cases,", os.path.getsize(OUT), "bytes")
