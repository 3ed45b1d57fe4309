"""Samples of DeepSeek-VL2 to flat arrays, and their place in a packed batch."""

import numpy as np

from batches import Layout, starts

from . import preprocess
from .checkpoint import VOCAB
from .style import STYLE

PATCHES = preprocess.GRID**2
UNITS = preprocess.SIDE**2
TYPES = {
    "pixels": np.uint8,
    "ids": np.int16,
    "turn": np.uint8,
    "role": np.uint8,
    "unit": np.int16,
    "tiles": np.int32,
    "kinds": np.uint8,
}


def typed(arrays):
    return {key: np.asarray(value).astype(TYPES[key]) for key, value in arrays.items()}


def record(sample, tokenizer, open_end=False):
    """Arrays of a sample. `turn` is k + 1 on the answer tokens of turn k (its end token included), else 0; role and
    unit as in preprocess, tiles the pixel row where each tile starts. open_end leaves the last answer out."""
    encode = lambda text: tokenizer.encode(text, add_special_tokens=False).ids
    image_id, bos, eos = (
        tokenizer.token_to_id(t) for t in ("<image>", "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>")
    )
    tiled = len(sample["images"]) <= preprocess.TILED_PICTURES
    pictures = [preprocess.picture(image, tiled) for image in sample["images"]]
    left, units = iter(pictures), 0
    ids, turn, role, unit = [bos], [0], [0], [0]

    def say(new, k=0):
        ids.extend(new)
        turn.extend([k] * len(new))
        role.extend([0] * len(new))
        unit.extend([0] * len(new))

    if sample["system"] is not None:
        say(encode(sample["system"].strip()))
    for k, (content, answer) in enumerate(sample["turns"]):
        for at, piece in enumerate(preprocess.user_text(content).split("<image>")):
            if at:
                pixels, crop = next(left)
                roles, inner = preprocess.tokens(crop)
                ids.extend([image_id] * len(roles))
                turn.extend([0] * len(roles))
                role.extend(roles.tolist())
                unit.extend((inner + units).tolist())
                units += len(pixels) // PATCHES * UNITS
            say(encode(piece))
        if open_end and k + 1 == len(sample["turns"]):
            break
        say(encode(answer.strip()) + [eos], k + 1)
    pixels = np.concatenate([p for p, _ in pictures] or [np.zeros((0, 588))])
    return typed(
        {
            "pixels": pixels,
            "ids": ids,
            "turn": turn,
            "role": role,
            "unit": unit,
            "tiles": np.arange(0, len(pixels), PATCHES),
            "kinds": [STYLE.kinds.index(kind) for kind in sample["kinds"]],
        }
    )


def extended(record, token):
    """The record with one more token of text at its end."""
    more = {"ids": token, "turn": 0, "role": 0, "unit": 0}
    return typed({key: np.append(value, more[key]) if key in more else value for key, value in record.items()})


def layout(tokenizer):
    image_id = tokenizer.token_to_id("<image>")

    def place(parts, sizes, flat, rows):
        ids, role = flat["ids"].astype(np.int64), flat["role"].astype(np.int64)
        feature = role == preprocess.FEATURE
        # Rows that take no text or no feature read spread ones, so that the backward sums do not all meet in one.
        unit = np.arange(len(ids)) % max(1, UNITS * len(flat["tiles"]))
        unit[feature] = (np.repeat(UNITS * starts(sizes["tiles"]), sizes["ids"]) + flat["unit"])[feature]
        return {
            "ids": np.where(ids == image_id, np.arange(len(ids)) % VOCAB, ids),
            "unit": unit,
            "role": role,
            "positions": np.arange(len(ids)) - np.repeat(starts(sizes["ids"]), sizes["ids"]),
            "tiles": np.repeat(rows, sizes["tiles"]) + flat["tiles"],
        }

    def ready(batch, out):
        out |= {key: batch[key].long() for key in ("ids", "unit", "tiles")}
        out |= {key: batch[key] for key in ("role", "positions")}

    return Layout(
        kinds=STYLE.kinds,
        capacity={"tiles": 1200, "tokens": 49152, "answers": 8192, "turns": 1024, "sequences": 640},
        counted={"tiles": "tiles"},
        segments={"sequences": ("tokens", 256, 640)},
        lengths={},
        arrays={
            "ids": ("tokens", ()),
            "unit": ("tokens", ()),
            "role": ("tokens", ()),
            "positions": ("tokens", ()),
            "tiles": ("tiles", ()),
        },
        place=place,
        ready=ready,
        padding={"role": -1},
        patches=430,
    )
