"""Many samples to one packed batch: everything lies end to end, attention goes over segments.

A record is a dictionary of arrays of one sample. Common to all models are ids [tokens], turn [tokens] (k + 1 on the
answer tokens of turn k, its end token included, else 0), kinds [turns] and pixels [rows, 588] (patches, uint8); the
others are the model's own, as its Layout says.
"""

from dataclasses import dataclass
from typing import Callable

import numpy as np
import torch


@dataclass
class Layout:
    """How a model's batch is laid out.

    capacity: room of a training batch by name; with fixed shapes a step can be captured as one CUDA graph.
    counted: room -> record field whose length it counts, beside the common "tokens", "turns", "answers", "sequences".
    segments: name -> (room, length of the spare segments that fill the unused rows, longest).
    lengths: segment name -> record field with the lengths, for other segments than the sequences.
    arrays: name -> (room, shape of an element) of the model's own arrays.
    place(parts, sizes, flat, rows): those arrays of samples laid end to end, rows = first pixel row of each sample.
    ready(batch, out): adds the model's view of them to `out`.
    padding: name -> what fills the unused rows of an array, 0 if not named.
    kinds: names of the kinds of question; a batch has their indexes.
    patches: pixel rows of a sample on average, with some reserve.
    """

    kinds: list
    capacity: dict
    counted: dict
    segments: dict
    lengths: dict
    arrays: dict
    place: Callable
    ready: Callable
    padding: dict
    patches: int

    def shapes(self):
        """name -> shape of every array of a batch of fixed size."""
        rooms = {"asked": "answers", "labels": "answers", "owner": "answers", "weight": "answers", "kinds": "turns"}
        shapes = {k: (self.capacity[r],) for k, r in rooms.items()}
        shapes |= {k: (self.capacity[r], *element) for k, (r, element) in self.arrays.items()}
        return shapes | {k: (self.capacity[k] + 1,) for k in self.segments}

    def longest(self):
        return {k: longest for k, (_, _, longest) in self.segments.items()}


class Block:
    """Many records end to end, with the offsets of each."""

    def __init__(self, records):
        self.data, self.ends = {}, {}
        for key in records[0]:
            parts = [r[key] for r in records]
            self.ends[key] = np.cumsum([0] + [len(p) for p in parts])
            self.data[key] = np.concatenate(parts)

    def __len__(self):
        return len(self.ends["ids"]) - 1

    def part(self, key, i):
        return self.data[key][self.ends[key][i] : self.ends[key][i + 1]]


def starts(lengths):
    """Start of each part when parts of these lengths are laid end to end."""
    return np.cumsum(lengths) - lengths


def fill(candidates, layout):
    """The longest beginning of [(block, sample, row)] that fits into the capacity, oversized sequences left out."""
    capacity = layout.capacity
    used = dict.fromkeys(capacity, 0)
    names = layout.counted | {"tokens": "ids", "turns": "kinds"}
    chosen = []
    for block, i, row in candidates:
        size = {k: int(block.ends[f][i + 1] - block.ends[f][i]) for k, f in names.items()}
        if size["tokens"] > layout.segments["sequences"][2]:
            continue
        size |= {"answers": int(np.count_nonzero(block.part("turn", i))), "sequences": 1}
        now = {k: used[k] + size[k] for k in used}
        spare = {k: (capacity[r] - now[r]) // length + 1 for k, (r, length, _) in layout.segments.items()}
        if any(now[k] + spare.get(k, 0) > capacity[k] - (k == "turns") for k in now):
            break
        used = now
        chosen.append((block, i, row))
    return chosen


def padded(x, size, value=0):
    return np.concatenate([x, np.full((size - len(x), *x.shape[1:]), value, x.dtype)])


def segment_ends(lengths, name, layout, fixed):
    """Cumulative lengths; if `fixed`, unused rows become spare segments and the array gets its fixed length."""
    if fixed:
        room, spare, _ = layout.segments[name]
        total = layout.capacity[room]
        left = total - int(lengths.sum())
        lengths = np.concatenate([lengths, [spare] * (left // spare), [left % spare]])
    ends = np.concatenate([[0], np.cumsum(lengths)])
    return padded(ends, layout.capacity[name] + 1, total) if fixed else ends


def collate(chosen, layout, fixed=False):
    """chosen: [(block, sample, first pixel row of the block)]. Host arrays (int32, weight float32) of one packed batch,
    of the shapes of the layout where `fixed`."""
    fields = [key for key in chosen[0][0].ends if key != "pixels"]
    parts = {key: [b.part(key, i) for b, i, _ in chosen] for key in fields}
    sizes = {key: np.array([len(p) for p in parts[key]]) for key in fields}
    flat = {key: np.concatenate(parts[key]) for key in fields}
    rows = np.array([row + b.ends["pixels"][i] for b, i, row in chosen])
    ids = flat["ids"].astype(np.int64)
    answer = np.flatnonzero(flat["turn"])  # never the first token of a sequence
    owner = np.repeat(starts(sizes["kinds"]), sizes["ids"])[answer] + flat["turn"][answer] - 1
    lengths = np.bincount(owner, minlength=len(flat["kinds"]))
    out = {
        "asked": answer - 1,
        "labels": ids[answer],
        "owner": owner,
        "kinds": flat["kinds"],
        "weight": (1.0 / np.sqrt(np.maximum(lengths, 1)))[owner].astype(np.float32),
    } | layout.place(parts, sizes, flat, rows)
    if fixed:
        unused = layout.padding | {"owner": layout.capacity["turns"] - 1, "kinds": len(layout.kinds)}
        for key, shape in layout.shapes().items():
            if key not in layout.segments:
                out[key] = padded(out[key], shape[0], unused.get(key, 0))
    for key in layout.segments:
        data = flat[layout.lengths[key]] if key in layout.lengths else sizes["ids"]
        out[key] = segment_ends(data.astype(np.int64), key, layout, fixed)
    return {k: v if v.dtype == np.float32 else v.astype(np.int32) for k, v in out.items()}


def ready(batch, pixels, layout, longest=None):
    """The model's view of a batch of tensors: int64 indexes, segments as (ends int32, longest, lengths or None)."""
    out = {"pixels": pixels, "weight": batch["weight"]}
    for key in ("asked", "labels", "owner", "kinds"):
        out[key] = batch[key].long()
    layout.ready(batch, out)
    for key in layout.segments:
        ends = batch[key]
        lengths = None if longest and ends.is_cuda else [n for n in ends.diff().tolist() if n]
        out[key] = (ends, longest[key] if longest else max(lengths, default=0), lengths)
    return out


def gather(chosen, layout, pixels, device):
    """A batch of exactly these samples on a device, without padding."""
    batch = {k: torch.from_numpy(v).to(device) for k, v in collate(chosen, layout).items()}
    return ready(batch, pixels, layout)
