"""Pictures and conversations to model inputs, as transformers 5.17 computes them for Qwen2.5-VL.

Patches are kept as uint8 halves (one frame each, [3 * 14 * 14]); a patch of the model is two halves, the same one
twice for a still picture. Patches are stored in the vision tower's window order.
"""

import math

import numpy as np
from PIL import Image

PATCH, MERGE, WINDOW = 14, 2, 4  # WINDOW: merged units per window side, 112 / 14 / 2
FACTOR = PATCH * MERGE
TOKENS_PER_SECOND = 2


def smart_resize(height, width, min_pixels, max_pixels):
    """Target size: multiples of 28, area within the limits, aspect about kept."""
    if max(height, width) / min(height, width) > 200:
        raise ValueError("aspect ratio above 200")
    h, w = round(height / FACTOR) * FACTOR, round(width / FACTOR) * FACTOR
    if h * w > max_pixels:
        beta = math.sqrt(height * width / max_pixels)
        h = max(FACTOR, math.floor(height / beta / FACTOR) * FACTOR)
        w = max(FACTOR, math.floor(width / beta / FACTOR) * FACTOR)
    elif h * w < min_pixels:
        beta = math.sqrt(min_pixels / (height * width))
        h, w = math.ceil(height * beta / FACTOR) * FACTOR, math.ceil(width * beta / FACTOR) * FACTOR
    return h, w


def resize(image, limits):
    h, w = smart_resize(image.height, image.width, *limits)
    return image if (w, h) == image.size else image.resize((w, h), Image.BICUBIC)


def halves(image):
    """[gh * gw, 3 * 14 * 14] uint8 in merge-block order: (gh/2, gw/2, 2, 2) patches of (C, 14, 14)."""
    pixels = np.asarray(image)
    gh, gw = pixels.shape[0] // PATCH, pixels.shape[1] // PATCH
    blocks = pixels.reshape(gh // MERGE, MERGE, PATCH, gw // MERGE, MERGE, PATCH, 3)
    return blocks.transpose(0, 3, 1, 4, 6, 2, 5).reshape(gh * gw, 3 * PATCH * PATCH)


def window_order(rows, columns):
    """Order of merged units by windows, and the number of units in each window, for one frame."""
    order, sizes = [], []
    index = np.arange(rows * columns).reshape(rows, columns)
    for r in range(0, rows, WINDOW):
        for c in range(0, columns, WINDOW):
            block = index[r : r + WINDOW, c : c + WINDOW].reshape(-1)
            order.append(block)
            sizes.append(block.size)
    return np.concatenate(order), sizes


def vision_item(frames, limits):
    """One picture (one frame) or clip (an even number of frames) as arrays in window order."""
    frames = [resize(f, limits) for f in frames]
    gh, gw = frames[0].height // PATCH, frames[0].width // PATCH
    order, sizes = window_order(gh // MERGE, gw // MERGE)
    patch_order = (order[:, None] * 4 + np.arange(4)).reshape(-1)
    row, column = np.meshgrid(np.arange(gh), np.arange(gw), indexing="ij")
    in_blocks = lambda x: x.reshape(gh // 2, 2, gw // 2, 2).transpose(0, 2, 1, 3).reshape(-1)
    coords = np.stack([in_blocks(row), in_blocks(column)], 1)[patch_order]
    pixels = np.concatenate([halves(f)[patch_order] for f in frames])
    patches, units = gh * gw, gh * gw // 4
    steps = max(1, len(frames) // 2)
    if len(frames) == 1:
        first = second = np.arange(patches)
    else:
        base = np.arange(steps)[:, None] * 2 * patches + np.arange(patches)
        first, second = base.reshape(-1), (base + patches).reshape(-1)
    back = np.argsort(order, kind="stable")
    return {
        "pixels": pixels,
        "first": first,
        "second": second,
        "coords": np.tile(coords, (steps, 1)),
        "windows": np.tile(np.array(sizes) * 4, steps),
        "frames": np.full(steps, patches),
        "back": (np.arange(steps)[:, None] * units + back).reshape(-1),
        "grid": (steps, gh, gw),
    }


def chat_text(turns, system, items, generation_prompt=False):
    """Text of a conversation. turns: [(content, answer)], content a list of 'image', 'video' or text parts;
    items: vision items in order, for the number of placeholder tokens."""
    left = iter(items)
    out = []
    if system is not None:
        out.append(f"<|im_start|>system\n{system}<|im_end|>\n")
    for content, answer in turns:
        out.append("<|im_start|>user\n")
        for part in content:
            if part in ("image", "video"):
                t, h, w = next(left)["grid"]
                out.append("<|vision_start|>" + f"<|{part}_pad|>" * (t * h * w // 4) + "<|vision_end|>")
            else:
                out.append(part)
        out.append("<|im_end|>\n<|im_start|>assistant\n")
        if answer is not None:
            out.append(answer + "<|im_end|>\n")
    return "".join(out)


def positions(ids, items, seconds, image_id, video_id):
    """[3, len(ids)] M-RoPE positions (get_rope_index of transformers 5.17) and the position after the last token."""
    ids = np.asarray(ids)
    out = np.zeros((3, len(ids)), np.int64)
    kind = np.where(ids == image_id, 1, np.where(ids == video_id, 2, 0))
    left = iter(items)
    at, current = 0, 0
    while at < len(ids):
        end = at + 1
        while end < len(ids) and kind[end] == kind[at]:
            end += 1
        if kind[at] == 0:
            out[:, at:end] = current + np.arange(end - at)
            current += end - at
        else:
            t, h, w = next(left)["grid"]
            h, w = h // MERGE, w // MERGE
            interval = TOKENS_PER_SECOND * int(seconds) if kind[at] == 2 else 1
            tt, hh, ww = np.meshgrid(np.arange(t) * interval, np.arange(h), np.arange(w), indexing="ij")
            out[:, at:end] = current + np.stack([tt, hh, ww]).reshape(3, -1)
            current += max(h, w)
        at = end
    return out, current
