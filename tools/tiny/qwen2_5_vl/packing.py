"""Samples of Qwen2.5-VL to flat arrays, and their place in a packed batch."""

import numpy as np

from batches import Layout, starts

from . import preprocess
from .checkpoint import MAX_PIXELS, MIN_PIXELS
from .style import STYLE

TYPES = {
    "pixels": np.uint8,
    "ids": np.int16,
    "turn": np.uint8,
    "positions": np.int16,
    "first": np.int32,
    "second": np.int32,
    "coords": np.uint8,
    "windows": np.int16,
    "frames": np.int16,
    "back": np.int32,
    "kinds": np.uint8,
}


def record(sample, tokenizer, open_end=False):
    """Arrays of a sample. `turn` is k + 1 on the answer tokens of turn k (its end token included), else 0.
    open_end leaves the last answer out and ends with the prompt for it."""
    limits = (MIN_PIXELS, MAX_PIXELS)
    media = [sample["images"]] if sample["video"] else [[image] for image in sample["images"]]
    items = [preprocess.vision_item(frames, limits) for frames in media]
    turns = sample["turns"]
    if open_end:
        turns = turns[:-1] + [(turns[-1][0], None)]
    text = preprocess.chat_text(turns, sample["system"], items)
    ids = np.array(tokenizer.encode(text).ids)
    special = {name: tokenizer.token_to_id(f"<|{name}|>") for name in ("image_pad", "video_pad", "im_start", "im_end")}
    seconds = 2.0 / sample["fps"] if sample["video"] else 1.0
    positions, _ = preprocess.positions(ids, items, seconds, special["image_pad"], special["video_pad"])
    turn = np.zeros(len(ids), np.uint8)
    assistant = tokenizer.encode("assistant\n").ids
    starts = np.flatnonzero(ids == special["im_start"])
    k = 0
    for start in starts:
        at = start + 1 + len(assistant)
        if list(ids[start + 1 : at]) == assistant:
            ends = np.flatnonzero(ids[at:] == special["im_end"])
            if len(ends):
                turn[at : at + ends[0] + 1] = k + 1
                k += 1
    join = lambda key, shape: np.concatenate([i[key] for i in items]) if items else np.zeros(shape)
    shift = np.cumsum([0] + [len(i["pixels"]) for i in items])
    units = np.cumsum([0] + [len(i["back"]) for i in items])
    empty = [np.zeros(0)]
    arrays = {
        "pixels": join("pixels", (0, 588)),
        "ids": ids,
        "turn": turn,
        "positions": positions.T,
        "first": np.concatenate([i["first"] + s for i, s in zip(items, shift)] or empty),
        "second": np.concatenate([i["second"] + s for i, s in zip(items, shift)] or empty),
        "coords": join("coords", (0, 2)),
        "windows": join("windows", 0),
        "frames": join("frames", 0),
        "back": np.concatenate([i["back"] + s for i, s in zip(items, units)] or empty),
        "kinds": np.array([STYLE.kinds.index(kind) for kind in sample["kinds"]]),
    }
    return {key: np.asarray(value).astype(TYPES[key]) for key, value in arrays.items()}


def layout(tokenizer):
    special = [tokenizer.token_to_id("<|image_pad|>"), tokenizer.token_to_id("<|video_pad|>")]

    def place(parts, sizes, flat, rows):
        ids = flat["ids"].astype(np.int64)
        # Each placeholder token takes the embedding of its merged unit, whose place is that of the window order.
        unit = np.arange(len(ids)) % max(1, len(flat["back"]))
        unit[(ids == special[0]) | (ids == special[1])] = (
            np.repeat(starts(sizes["back"]), sizes["back"]) + flat["back"]
        )
        return {
            "ids": ids,
            "unit": unit,
            "positions": flat["positions"],
            "coords": flat["coords"],
            "first": np.repeat(rows, sizes["first"]) + flat["first"],
            "second": np.repeat(rows, sizes["second"]) + flat["second"],
        }

    def ready(batch, out):
        out |= {"coords": batch["coords"], "positions": batch["positions"].T}
        out |= {key: batch[key].long() for key in ("ids", "unit", "first", "second")}
        out["hole"] = ((batch["ids"] == special[0]) | (batch["ids"] == special[1]))[:, None]

    return Layout(
        kinds=STYLE.kinds,
        capacity={
            "patches": 65536,
            "tokens": 33792,
            "answers": 4096,
            "turns": 1024,
            "windows": 4096,
            "frames": 1536,
            "sequences": 768,
        },
        counted={"patches": "first", "windows": "windows", "frames": "frames"},
        segments={
            "windows": ("patches", 64, 64),
            "frames": ("patches", 256, MAX_PIXELS // 196),
            "sequences": ("tokens", 256, 512),
        },
        lengths={"windows": "windows", "frames": "frames"},
        arrays={
            "ids": ("tokens", ()),
            "unit": ("tokens", ()),
            "positions": ("tokens", (3,)),
            "coords": ("patches", (2,)),
            "first": ("patches", ()),
            "second": ("patches", ()),
        },
        place=place,
        ready=ready,
        padding={},
        patches=300,
    )
