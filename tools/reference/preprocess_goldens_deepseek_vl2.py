"""Makes tests/data/media/deepseek_vl2.json: what DeepSeek-VL2's processor (deepseek_vl2.py, with Pillow's own
ImageOps.pad and decoders) makes of the files in tests/data/media and of patterns of odd sizes. All arrays are compared
by CRC-32.

    python tools/reference/preprocess_goldens_deepseek_vl2.py tests/data/media

    pictures     {file, width, height, rgb, ...}: rgb is [height, width, 3] as decoded, no EXIF rotation, no blending
    patterns     {width, height, seed, ...}: byte i of [height, width, 3] is (7 i + i / 251 + seed) mod 256
                 each with two entries, tiled and untiled (a picture among more than two):
                 {tiles: [columns, rows], tokens,
                  views: uint8 [1 + columns rows, 384, 384, 3], the whole view first, then tiles row by row,
                  patches_f32, patches_bf16: [(1 + columns rows) 729, 588], values (channel, y, x)}
    pads         {file, width, height, rgb}: ImageOps.pad of the file to width x height on grey 127
    resolutions  [width, height, best width, best height] among the published candidates
    tokens       [columns, rows, tokens]
"""

import json
import os
import random
import sys
import types
import zlib

import numpy as np
import PIL
import torch
from PIL import Image, ImageOps

from deepseek_vl2 import Processor, best_resolution, patches_of
from make_random_deepseek_vl2 import TILES

OUT = sys.argv[1]
CANDIDATES = [(384 * w, 384 * h) for w, h in TILES]
SIZES = [
    (1, 1),
    (1, 1000),
    (2000, 3),
    (3, 2000),
    (1, 400),
    (1, 768),
    (1, 769),
    (2, 3),
    (300, 300),
    (384, 384),
    (385, 384),
    (384, 385),
    (383, 384),
    (640, 480),
    (1000, 747),
    (747, 1000),
    (1080, 1920),
    (1000, 1000),
    (2000, 300),
    (577, 191),
    (767, 769),
    (1153, 1151),
    (4000, 40),
]


def crc(array):
    return zlib.crc32(np.ascontiguousarray(array).tobytes())


def bare_processor():
    """The processor's pictures alone, which need no checkpoint."""
    p = types.SimpleNamespace(candidates=CANDIDATES, size=384, side=14, mean=[0.5] * 3, std=[0.5] * 3, normalize=True)
    for name in ("load_image", "crop", "views", "normalized", "image_tokens"):
        setattr(p, name, types.MethodType(getattr(Processor, name), p))
    return p


def entry(p, image, tiling):
    views, (nw, nh) = p.views(image, tiling)
    patches = patches_of(p.normalized(views), 14).flatten(0, 1)
    return {
        "tiles": [nw, nh],
        "tokens": p.image_tokens(nw, nh),
        "views": crc(views),
        "patches_f32": crc(patches.numpy()),
        "patches_bf16": crc(patches.bfloat16().view(torch.int16).numpy()),
    }


def golden(p, image):
    return {
        "width": image.width,
        "height": image.height,
        "tiled": entry(p, image, True),
        "untiled": entry(p, image, False),
    }


def pattern(width, height, seed):
    i = np.arange(width * height * 3, dtype=np.int64)
    return Image.fromarray(((i * 7 + i // 251 + seed) % 256).astype(np.uint8).reshape(height, width, 3))


def pads(p):
    cases = []
    for name, sizes in {
        "png-rgb.png": [
            (33, 33),
            (66, 33),
            (33, 99),
            (120, 77),
            (240, 154),
            (119, 77),
            (121, 77),
            (1, 9),
            (500, 3),
            (97, 301),
        ],
        "jpeg-tall.jpg": [(33, 33), (7, 500), (310, 31), (62, 600), (384, 384)],
        "png-thin.png": [(384, 384), (64, 1), (3, 3), (200, 200)],
    }.items():
        image = p.load_image(os.path.join(OUT, name))
        for size in sizes:
            out = ImageOps.pad(image, size, color=(127, 127, 127))
            cases.append({"file": name, "width": size[0], "height": size[1], "rgb": crc(np.asarray(out))})
    return cases


def resolutions():
    rng, cases = random.Random(0), []
    odd = [
        (1, 4000),
        (4000, 1),
        (1, 20000),
        (30000, 7),
        (1024, 768),
        (1920, 1080),
        (4000, 400),
        (3840, 2160),
        (768, 768),
    ]
    for width, height in SIZES + odd + [(rng.randint(1, 3000), rng.randint(1, 3000)) for _ in range(150)]:
        cases.append([width, height, *best_resolution(width, height, CANDIDATES)])
    return cases


def main():
    p = bare_processor()
    pictures = []
    for g in json.load(open(os.path.join(OUT, "goldens.json")))["pictures"]:
        image = p.load_image(os.path.join(OUT, g["file"]))
        pictures.append({"file": g["file"], "rgb": crc(np.asarray(image)), **golden(p, image)})
    goldens = {
        "versions": {"pillow": PIL.__version__},
        "pictures": pictures,
        "patterns": [{"seed": i, **golden(p, pattern(w, h, i))} for i, (w, h) in enumerate(SIZES)],
        "pads": pads(p),
        "resolutions": resolutions(),
        "tokens": [[w, h, p.image_tokens(w, h)] for w, h in TILES],
    }
    lines = json.dumps(goldens, separators=(",", ":")).replace("},{", "},\n{").replace("],[", "],\n[")
    with open(os.path.join(OUT, "deepseek_vl2.json"), "w") as f:
        f.write(lines + "\n")


if __name__ == "__main__":
    main()
