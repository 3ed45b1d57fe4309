"""Samples to flat arrays, and many samples to one packed batch."""

import numpy as np
import torch

import preprocess
from checkpoint import MAX_PIXELS, MIN_PIXELS
from scenes import KINDS

FIELDS = ["ids", "turn", "positions", "first", "second", "coords", "windows", "frames", "back", "kinds"]
TYPES = {
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
    return {
        "pixels": join("pixels", (0, 588)).astype(np.uint8),
        "ids": ids,
        "turn": turn,
        "positions": positions.T,
        "first": np.concatenate([i["first"] + s for i, s in zip(items, shift)] or empty),
        "second": np.concatenate([i["second"] + s for i, s in zip(items, shift)] or empty),
        "coords": join("coords", (0, 2)),
        "windows": join("windows", 0),
        "frames": join("frames", 0),
        "back": np.concatenate([i["back"] + s for i, s in zip(items, units)] or empty),
        "kinds": np.array([KINDS.index(kind) for kind in sample["kinds"]]),
    }


class Block:
    """Many records end to end, with the offsets of each."""

    def __init__(self, records):
        self.data, self.ends = {}, {}
        for key in ["pixels"] + FIELDS:
            parts = [r[key] for r in records]
            self.ends[key] = np.cumsum([0] + [len(p) for p in parts])
            self.data[key] = np.concatenate(parts).astype(np.uint8 if key == "pixels" else TYPES[key])

    def __len__(self):
        return len(self.ends["ids"]) - 1

    def part(self, key, i):
        return self.data[key][self.ends[key][i] : self.ends[key][i + 1]]


# Room of a training batch: with fixed shapes a step can be captured as one CUDA graph.
CAPACITY = {
    "patches": 65536,
    "tokens": 33792,
    "answers": 4096,
    "turns": 1024,
    "windows": 4096,
    "frames": 1536,
    "sequences": 768,
}
LONGEST = {"windows": 64, "frames": MAX_PIXELS // 196, "sequences": 512}
SPARE = {"windows": 64, "frames": 256, "sequences": 256}  # length of the segments that fill the unused rows


def starts(lengths):
    """Start of each part when parts of these lengths are laid end to end."""
    return np.cumsum(lengths) - lengths


def fill(candidates):
    """The longest beginning of [(block, sample, row)] that fits into CAPACITY, oversized sequences left out."""
    used = dict.fromkeys(CAPACITY, 0)
    names = {"patches": "first", "tokens": "ids", "windows": "windows", "frames": "frames", "turns": "kinds"}
    chosen = []
    for block, i, row in candidates:
        size = {k: int(block.ends[f][i + 1] - block.ends[f][i]) for k, f in names.items()}
        if size["tokens"] > LONGEST["sequences"]:
            continue
        size |= {"answers": int(np.count_nonzero(block.part("turn", i))), "sequences": 1}
        now = {k: used[k] + size[k] for k in used}
        spare = {
            k: (CAPACITY[r] - now[r]) // SPARE[k] + 1
            for k, r in (("windows", "patches"), ("frames", "patches"), ("sequences", "tokens"))
        }
        if any(now[k] + spare.get(k, 0) > CAPACITY[k] - (k == "turns") for k in now):
            break
        used = now
        chosen.append((block, i, row))
    return chosen


def padded(x, size, value=0):
    return np.concatenate([x, np.full((size - len(x), *x.shape[1:]), value, x.dtype)])


def segment_ends(lengths, name, total):
    """Cumulative lengths; with a total, the unused rows become spare segments and the array gets its fixed length."""
    if total is not None:
        left = total - int(lengths.sum())
        lengths = np.concatenate([lengths, [SPARE[name]] * (left // SPARE[name]), [left % SPARE[name]]])
    ends = np.concatenate([[0], np.cumsum(lengths)])
    return ends if total is None else padded(ends, CAPACITY[name] + 1, total)


def collate(chosen, special, fixed=False):
    """chosen: [(block, sample, first pixel row of the block)]. Host arrays (int32, weight float32) of one packed batch,
    of the shapes of CAPACITY where `fixed`."""
    parts = {key: [b.part(key, i) for b, i, _ in chosen] for key in FIELDS}
    sizes = {key: np.array([len(p) for p in parts[key]]) for key in FIELDS}
    flat = {key: np.concatenate(parts[key]) for key in FIELDS}
    rows = np.array([row + b.ends["pixels"][i] for b, i, row in chosen])
    ids = flat["ids"].astype(np.int64)
    # Each placeholder token takes the embedding of its merged unit, whose place is that of the window order.
    unit = np.arange(len(ids)) % max(1, len(flat["back"]))
    unit[(ids == special["image_pad"]) | (ids == special["video_pad"])] = (
        np.repeat(starts(sizes["back"]), sizes["back"]) + flat["back"]
    )
    answer = np.flatnonzero(flat["turn"])  # never the first token of a sequence
    owner = np.repeat(starts(sizes["kinds"]), sizes["ids"])[answer] + flat["turn"][answer] - 1
    lengths = np.bincount(owner, minlength=len(flat["kinds"]))
    out = {
        "ids": ids,
        "unit": unit,
        "positions": flat["positions"],
        "coords": flat["coords"],
        "first": np.repeat(rows, sizes["first"]) + flat["first"],
        "second": np.repeat(rows, sizes["second"]) + flat["second"],
        "asked": answer - 1,
        "labels": ids[answer],
        "owner": owner,
        "kinds": flat["kinds"],
        "weight": (1.0 / np.sqrt(np.maximum(lengths, 1)))[owner].astype(np.float32),
    }
    if fixed:
        for key, room in {
            "ids": "tokens",
            "unit": "tokens",
            "positions": "tokens",
            "coords": "patches",
            "first": "patches",
            "second": "patches",
            "asked": "answers",
            "labels": "answers",
            "weight": "answers",
        }.items():
            out[key] = padded(out[key], CAPACITY[room])
        out["owner"] = padded(out["owner"], CAPACITY["answers"], CAPACITY["turns"] - 1)
        out["kinds"] = padded(out["kinds"], CAPACITY["turns"], len(KINDS))
    for key, data, room in (
        ("windows", flat["windows"], "patches"),
        ("frames", flat["frames"], "patches"),
        ("sequences", sizes["ids"], "tokens"),
    ):
        out[key] = segment_ends(data.astype(np.int64), key, CAPACITY[room] if fixed else None)
    return {k: v if v.dtype == np.float32 else v.astype(np.int32) for k, v in out.items()}


def ready(batch, pixels, special, longest=None):
    """The model's view of a batch of tensors: int64 indexes, segments as (ends int32, longest, lengths or None)."""
    out = {"pixels": pixels, "weight": batch["weight"], "coords": batch["coords"], "positions": batch["positions"].T}
    for key in ("ids", "unit", "first", "second", "asked", "labels", "owner", "kinds"):
        out[key] = batch[key].long()
    out["hole"] = ((batch["ids"] == special["image_pad"]) | (batch["ids"] == special["video_pad"]))[:, None]
    for key in ("windows", "frames", "sequences"):
        ends = batch[key]
        lengths = None if longest and ends.is_cuda else [n for n in ends.diff().tolist() if n]
        out[key] = (ends, longest[key] if longest else max(lengths, default=0), lengths)
    return out


def gather(chosen, special, pixels, device):
    """A batch of exactly these samples on a device, without padding."""
    batch = {k: torch.from_numpy(v).to(device) for k, v in collate(chosen, special).items()}
    return ready(batch, pixels, special)
