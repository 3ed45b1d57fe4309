"""Pictures and conversations to the inputs of DeepSeek-VL2: the published processor's arithmetic at a small tile size."""

import math

import numpy as np
from PIL import ImageOps

IMAGE_SIZE, PATCH, DOWNSAMPLE = 128, 14, 2
GRID = IMAGE_SIZE // PATCH  # 9: the last two pixels of a side are not used
SIDE = math.ceil(GRID / DOWNSAMPLE)  # 5 tokens a side
CANDIDATES = [
    [w * IMAGE_SIZE, h * IMAGE_SIZE]
    for w, h in [(1, 1), (1, 2), (2, 1), (1, 3), (3, 1), (2, 2), (2, 3), (3, 2)]
]  # (width, height); the first of two equals wins
GREY = (127, 127, 127)
FEATURE, NEWLINE, SEPARATOR = 1, 2, 3  # what a token of a picture takes; 0 is text
TILED_PICTURES = 2  # a conversation with more pictures has no tiles


def best_size(width, height):
    """The candidate that keeps most of the picture's pixels, then the one with the fewest unused ones."""
    best, kept, wasted = None, 0, math.inf
    for w, h in CANDIDATES:
        scale = min(w / width, h / height)
        effective = min(int(width * scale) * int(height * scale), width * height)
        waste = w * h - effective
        if effective > kept or (effective == kept and waste < wasted):
            best, kept, wasted = (w, h), effective, waste
    return best


def patches(tile):
    """[81, 588] uint8 of a tile [128, 128, 3]: patches row by row, each (C, 14, 14)."""
    used = tile[: GRID * PATCH, : GRID * PATCH].reshape(GRID, PATCH, GRID, PATCH, 3)
    return used.transpose(0, 2, 4, 1, 3).reshape(GRID * GRID, 3 * PATCH * PATCH)


def picture(image, tiled):
    """(patches of the tiles, one after the other, (tiles across, tiles down)); the first tile is the whole picture.
    A picture of one local tile has the same pixels in both, which are kept once."""
    tiles = [np.asarray(ImageOps.pad(image, (IMAGE_SIZE, IMAGE_SIZE), color=GREY))]
    width, height = best_size(*image.size) if tiled else (IMAGE_SIZE, IMAGE_SIZE)
    across, down = width // IMAGE_SIZE, height // IMAGE_SIZE
    if across * down > 1:
        pixels = np.asarray(ImageOps.pad(image, (width, height), color=GREY))
        rows = pixels.reshape(down, IMAGE_SIZE, across, IMAGE_SIZE, 3).transpose(0, 2, 1, 3, 4)
        tiles += list(rows.reshape(-1, IMAGE_SIZE, IMAGE_SIZE, 3))
    return np.concatenate([patches(t) for t in tiles]), (across, down)


def view(units):
    """Roles and units of a map of features [rows, columns], each row followed by a newline."""
    rows, columns = units.shape
    roles = np.full((rows, columns + 1), FEATURE)
    roles[:, -1] = NEWLINE
    return roles.reshape(-1), np.pad(units, ((0, 0), (0, 1))).reshape(-1)


def tokens(crop):
    """(role, unit) of every token of a picture; units count its features tile by tile, row by row."""
    across, down = crop
    whole = np.arange(SIDE * SIDE).reshape(SIDE, SIDE)
    if across * down == 1:
        local = whole
    else:
        local = SIDE * SIDE + np.arange(across * down * SIDE * SIDE).reshape(down, across, SIDE, SIDE)
        local = local.transpose(0, 2, 1, 3).reshape(down * SIDE, across * SIDE)
    parts = [view(whole), ([SEPARATOR], [0]), view(local)]
    return tuple(np.concatenate([p[k] for p in parts]) for k in (0, 1))


def user_text(content):
    """A user's turn. content: 'image' and text parts; a picture is followed by a newline."""
    out = ""
    for k, part in enumerate(content):
        if part != "image":
            out += part
        else:
            after = content[k + 1] if k + 1 < len(content) else ""
            out += "<image>" + ("" if after.startswith("\n") else "\n")
    return f"<|User|>: {out.strip()}\n\n<|Assistant|>:"
