"""Draws scenes and clips and asks about them.

A sample is {images, video, fps, system, turns, kinds}: turns = [(content, answer)] with content a list of 'image',
'video' and text parts, kinds = the question kind of each turn. Everything follows from the numpy generator given.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Callable

import numpy as np

import draw
import language as lang

STANDARD = [(640, 480), (320, 240), (224, 224), (256, 256), (480, 360), (400, 300), (512, 512), (300, 300), (448, 448)]
KINDS = [
    "shape",
    "colour",
    "position",
    "count",
    "exists",
    "words",
    "handwriting",
    "compare",
    "motion",
    "describe",
    "turns",
    "text",
]




@dataclass(frozen=True)
class Style:
    """What depends on the model that is asked.

    kinds: of question. mix: kind of scene -> how often. zoom(width, height): pixels of the model's input per canvas
    pixel. sizes: canvas sizes as [(cumulated frequency, how to draw one)]; small: how to draw a small one; aspect: the
    largest. system: the usual system turn; systems: cumulated frequencies of it and of others, the rest has none.
    labels: what may stand before a numbered picture or clip. text_only: questions and answers without a picture.
    """

    kinds: list
    mix: dict
    zoom: Callable
    sizes: list
    small: Callable
    aspect: float
    system: str | None
    systems: tuple
    labels: dict
    text_only: list


STYLE: Style = None  # families.use sets it


def pick(rng, values):
    return values[int(rng.integers(len(values)))]


def some(rng, values, n):
    return [values[i] for i in rng.permutation(len(values))[:n]]


@lru_cache(maxsize=2)
def handwriting(held_out):
    """Digits of scikit-learn (1797 of 8x8, real handwriting), every fifth of a fixed shuffle held out."""
    from sklearn.datasets import load_digits

    data = load_digits()
    order = np.random.default_rng(123).permutation(len(data.target))
    chosen = order[::5] if held_out else np.delete(order, np.s_[::5])
    return [[data.images[i] for i in chosen if data.target[i] == d] for d in range(10)]


def between(low, high):
    return lambda rng: tuple(int(v) for v in rng.integers(low, high, 2))


def standard(rng):
    return pick(rng, STANDARD)


def strip(rng):
    """A wide or a tall canvas."""
    size = int(rng.integers(240, 420)), int(rng.integers(96, 140))
    return size if rng.random() < 0.5 else size[::-1]


def canvas_size(rng, small=False):
    while True:
        u = rng.random()
        w, h = STYLE.small(rng) if small else next(draw_size for p, draw_size in STYLE.sizes if u < p)(rng)
        if max(w, h) <= STYLE.aspect * min(w, h):
            return w, h


def new_shape(rng, shape=None, colour=None):
    name = colour or pick(rng, list(lang.COLOURS))
    return {"shape": shape or pick(rng, lang.SHAPES), "colour": name, "rgb": draw.paint(rng, name)}


def paint_shape(rng, canvas, item):
    mask = draw.shape_mask(item["shape"], item["r"], math.radians(item["angle"]))
    left, top = draw.put(canvas, mask, item["x"], item["y"], item["rgb"])
    x0, y0, x1, y1 = mask.getbbox()
    item["box"] = (left + x0, top + y0, left + x1, top + y1)


def spin(rng):
    return float(rng.uniform(-14, 14)) if rng.random() < 0.6 else 0.0


def ground(rng, size, colours):
    return draw.background(rng, *size, draw.background_colour(rng, colours))


def new_word(rng, low=2, high=5):
    if rng.random() < 0.5:
        return pick(rng, lang.WORDS)
    return "".join(chr(65 + int(v)) for v in rng.integers(0, 26, int(rng.integers(low, high + 1))))


def paint_word(rng, canvas, word, row, z, big):
    """Prints a word in a third of the canvas (row None: anywhere). The ground is measured for contrast."""
    width, height = canvas.size
    name = pick(rng, draw.FONTS)
    widest = draw.font(name, 40).getlength(word) / 40
    top = min(0.92 * width / widest, (0.62 if big else 0.27) * height, 90 / z)
    low = min(top, 19 / z)
    size = int(rng.uniform(low, top))
    size = max(8, size - size % 2)
    mask = draw.text_mask(word, name, size, float(rng.uniform(-5, 5)) if rng.random() < 0.35 else 0.0)
    room_x, room_y = max(0.0, width - mask.width) / 2, max(0.0, height - mask.height) / 2
    x = width / 2 + float(rng.uniform(-1, 1)) * room_x
    if row is None:
        y = height / 2 + float(rng.uniform(-1, 1)) * room_y
    else:
        y = float(
            np.clip((row + 0.5 + rng.uniform(-0.12, 0.12)) * height / 3, mask.height / 2, height - mask.height / 2)
        )
    box = [
        max(0, int(x - mask.width / 2)),
        max(0, int(y - mask.height / 2)),
        int(x + mask.width / 2),
        int(y + mask.height / 2),
    ]
    area = canvas.crop((box[0], box[1], max(box[2], box[0] + 1), max(box[3], box[1] + 1))).reduce(4)
    pixels = np.asarray(area).reshape(-1, 3)
    under = [tuple(pixels.min(0)), tuple(pixels.max(0)), tuple(pixels.mean(0))]
    if rng.random() < 0.25:
        panel = tuple(int(v) for v in rng.integers(0, 256, 3))
        pad = round(0.2 * size)
        canvas.paste(panel, (box[0] - pad, box[1] - pad, box[2] + pad, box[3] + pad))
        under = [panel]
    inks = [draw.paint(rng, c) for c in (["black", "white"] if rng.random() < 0.6 else list(lang.COLOURS))]
    inks = some(rng, inks, len(inks)) + [(0, 0, 0), (255, 255, 255)]
    gaps = [min(draw.distance(ink, u) for u in under) for ink in inks]
    good = [k for k, g in enumerate(gaps) if g > 75] or [int(np.argmax(gaps))]
    draw.put(canvas, mask, x, y, inks[good[0]])


# Scenes ----------------------------------------------------------------------------------------------------------


def cell_scene(rng, size=None, count=None, word=None):
    """Up to four items, each in its own cell of a 3x3 grid; perhaps a printed word in a row of its own."""
    size = size or canvas_size(rng)
    width, height = size
    z, least = STYLE.zoom(*size), min(size)
    n = count if count is not None else pick(rng, [1, 1, 2, 2, 2, 3, 3, 4])
    word = (new_word(rng) if rng.random() < 0.22 else None) if word is None else word
    row_of_word = int(rng.integers(3)) if word else None
    cells = [(r, c) for r in range(3) for c in range(3) if r != row_of_word]
    items = []
    for row, col in some(rng, cells, n):
        item = new_shape(rng)
        while any(o["shape"] == item["shape"] and o["colour"] == item["colour"] for o in items):
            item = new_shape(rng)
        biggest = 0.4 * least if n == 1 and not word and (row, col) == (1, 1) else 0.165 * least
        r = float(rng.uniform(min(biggest, max(11 / z, 0.07 * least)), biggest))
        x, y = ((col + 0.5 + rng.uniform(-0.13, 0.13)) * width / 3, (row + 0.5 + rng.uniform(-0.13, 0.13)) * height / 3)
        item |= {
            "row": row,
            "col": col,
            "r": r,
            "angle": spin(rng),
            "x": float(np.clip(x, r, width - r)),
            "y": float(np.clip(y, r, height - r)),
        }
        items.append(item)
    canvas = ground(rng, size, [i["rgb"] for i in items])
    for item in items:
        paint_shape(rng, canvas, item)
    if word:
        paint_word(rng, canvas, word, row_of_word, z, False)
    items.sort(key=lambda i: (i["row"], i["col"]))
    world = {"items": items, "word": word, "word_row": row_of_word, "cells": True, "size": size}
    return draw.weather(rng, canvas), world


def count_scene(rng, n=None, size=None):
    """Zero to eight shapes anywhere, not touching."""
    size = size or canvas_size(rng)
    width, height = size
    z, least = STYLE.zoom(*size), min(size)
    n = int(rng.integers(0, 9)) if n is None else n
    style = rng.random()
    if style < 0.35:
        one = new_shape(rng)
        kinds = [(one["shape"], one["colour"])] * 2
    elif style < 0.6:
        shape = pick(rng, lang.SHAPES)
        kinds = [(shape, c) for c in some(rng, list(lang.COLOURS), int(rng.integers(2, 4)))]
    else:
        shapes, colours = some(rng, lang.SHAPES, 2), some(rng, list(lang.COLOURS), 2)
        kinds = [(s, c) for s in shapes for c in colours]
    items = []
    top = max(12 / z, least * min(0.2, 0.34 / math.sqrt(max(n, 1))))
    for _ in range(n):
        shape, colour = pick(rng, kinds)
        item = new_shape(rng, shape, colour)
        for attempt in range(400):
            r = float(rng.uniform(max(10 / z, 0.6 * top), top)) * (1 - 0.4 * min(1, attempt / 200))
            r = max(r, 9.5 / z)
            x, y = float(rng.uniform(r + 1, width - r - 1)), float(rng.uniform(r + 1, height - r - 1))
            if all(math.hypot(x - o["x"], y - o["y"]) > r + o["r"] + 2.5 / z for o in items):
                items.append(item | {"r": r, "x": x, "y": y, "angle": spin(rng)})
                break
    canvas = ground(rng, size, [i["rgb"] for i in items])
    for item in items:
        paint_shape(rng, canvas, item)
    return draw.weather(rng, canvas), {"items": items, "word": None, "cells": False, "kinds": kinds, "size": size}


def ground_scene(rng, size=None):
    """One to four shapes anywhere, not touching, larger than those to be counted."""
    size = size or canvas_size(rng)
    z, least = STYLE.zoom(*size), min(size)
    pool = [new_shape(rng) for _ in range(pick(rng, [1, 2, 4, 4]))]
    items = []
    for _ in range(pick(rng, [1, 2, 2, 3, 3, 4])):
        one = pick(rng, pool)
        item = new_shape(rng, one["shape"], one["colour"] if rng.random() < 0.7 else None)
        for attempt in range(100):
            r = float(rng.uniform(0.09, 0.24)) * least * (1 - 0.5 * attempt / 100)
            r = max(r, 13 / z)
            x, y = float(rng.uniform(r, size[0] - r)), float(rng.uniform(r, size[1] - r))
            if all(math.hypot(x - o["x"], y - o["y"]) > r + o["r"] + 2.5 / z for o in items):
                items.append(item | {"r": r, "x": x, "y": y, "angle": spin(rng)})
                break
    canvas = ground(rng, size, [i["rgb"] for i in items])
    for item in items:
        paint_shape(rng, canvas, item)
    world = {"items": items, "word": None, "cells": False, "boxes": True, "size": size}
    return draw.weather(rng, canvas), world


def word_scene(rng, size=None, word=None):
    size = size or canvas_size(rng)
    canvas = ground(rng, size, [])
    items = []
    if rng.random() < 0.2:
        z, least = STYLE.zoom(*size), min(size)
        for _ in range(int(rng.integers(1, 4))):
            r = float(rng.uniform(8 / z, 0.13 * least))
            item = new_shape(rng) | {
                "r": r,
                "angle": spin(rng),
                "x": float(rng.uniform(r, size[0] - r)),
                "y": float(rng.uniform(r, size[1] - r)),
            }
            paint_shape(rng, canvas, item)
            items.append(item)
    word = word or new_word(rng)
    paint_word(rng, canvas, word, None, STYLE.zoom(*size), True)
    return draw.weather(rng, canvas), {"items": items, "word": word, "word_row": None, "cells": False}


def digit_scene(rng, held_out, size=None, digits=None):
    size = size or canvas_size(rng)
    width, height = size
    z = STYLE.zoom(*size)
    bank = handwriting(held_out)
    digits = digits or [int(v) for v in rng.integers(0, 10, int(rng.integers(1, 4)))]
    n = len(digits)
    ink = tuple(int(v) for v in (rng.integers(0, 90, 3) if rng.random() < 0.65 else rng.integers(0, 256, 3)))
    canvas = ground(rng, size, [ink, ink])
    if rng.random() < 0.2:
        pen, step = draw.ImageDraw.Draw(canvas), int(rng.uniform(0.12, 0.25) * height) + 4
        line = draw.jitter(rng, canvas.getpixel((1, 1)), 24)
        for y in range(int(rng.integers(step)), height, step):
            pen.line((0, y, width, y), fill=line)
    top = min(0.92 * width / n / 0.78, 0.8 * height, 110 / z)
    side = float(rng.uniform(min(top, max(30 / z, 0.4 * top)), top))
    masks = [draw.digit_mask(rng, pick(rng, bank[d]), side * float(rng.uniform(0.9, 1.1))) for d in digits]
    gap = float(rng.uniform(0.02, 0.2)) * side
    total = sum(m.width for m in masks) + gap * (n - 1)
    if total > 0.97 * width:
        gap = max(1.0, gap - (total - 0.97 * width) / max(1, n - 1))
        total = sum(m.width for m in masks) + gap * (n - 1)
    x = float(rng.uniform(0.015 * width, max(0.015 * width, 0.985 * width - total)))
    tall = max(m.height for m in masks)
    y = float(rng.uniform(tall / 2 + 1, max(tall / 2 + 1, height - tall / 2 - 1)))
    for mask in masks:
        draw.put(canvas, mask, x + mask.width / 2, y + float(rng.uniform(-0.05, 0.05)) * side, ink)
        x += mask.width + gap
    return draw.weather(rng, canvas), {"digits": digits}


def clip_scene(rng, size=None, direction=None, speed=None, frames=None, item=None):
    """A shape that moves steadily over a still ground; fast is 8.5 to 12 % of the way per frame, slow 3 to 4.5 %."""
    size = size or (canvas_size(rng, small=True) if rng.random() < 0.85 else (320, 240))
    n = frames or pick(rng, [4, 6, 8])
    direction = direction or ("still" if rng.random() < 0.1 else pick(rng, list(lang.DIRECTIONS)))
    speed = speed or pick(rng, ["fast", "slowly"])
    item = item or new_shape(rng)
    least = min(size)
    r = float(rng.uniform(0.085, 0.12 if speed == "fast" and n == 8 else 0.17)) * least
    r = max(r, 11 / STYLE.zoom(*size))
    dx, dy = lang.DIRECTIONS.get(direction, (0, 0))
    step = float(rng.uniform(0.085, 0.12) if speed == "fast" else rng.uniform(0.03, 0.045))
    path = []
    for extent, d in zip(size, (dx, dy)):
        travel = step * extent * (n - 1) * abs(d)
        travel = min(travel, extent - 2 * r - 2)
        start = float(rng.uniform(r, max(r, extent - r - travel)))
        along = start + np.linspace(0, travel, n)
        path.append(along[::-1] if d < 0 else along)
    other = None
    if rng.random() < 0.3:
        for _ in range(40):
            q = float(rng.uniform(0.08, 0.12)) * least
            x, y = float(rng.uniform(q, size[0] - q)), float(rng.uniform(q, size[1] - q))
            if all(math.hypot(px - x, py - y) > r + q + 2 for px, py in zip(*path)):
                other = new_shape(rng) | {"r": q, "x": x, "y": y, "angle": spin(rng)}
                while other["shape"] == item["shape"] or other["colour"] == item["colour"]:
                    other |= new_shape(rng)
                break
    canvas = ground(rng, size, [item["rgb"]] + ([other["rgb"]] if other else []))
    if other:
        paint_shape(rng, canvas, other)
    angle = spin(rng)
    damage = (
        {"noise": 0.5, "blur": 0.0, "jpeg": 0.5} if rng.random() < 0.4 else {"noise": 0.0, "blur": 0.0, "jpeg": 0.0}
    )
    pictures = []
    for x, y in zip(*path):
        frame = canvas.copy()
        paint_shape(rng, frame, item | {"r": r, "x": float(x), "y": float(y), "angle": angle})
        pictures.append(draw.weather(rng, frame, **damage))
    return pictures, {"item": item, "other": other, "direction": direction, "speed": speed}


# Questions -------------------------------------------------------------------------------------------------------


def named(item):
    return f"{item['colour']} {item['shape']}"


def reference(rng, items, item):
    """The shortest sure name of an item: its shape alone where that is enough."""
    if sum(i["shape"] == item["shape"] for i in items) == 1 and rng.random() < 0.7:
        return item["shape"]
    return named(item)


def place(item):
    return lang.PLACES[item["row"]][item["col"]]


def listing(parts):
    text = parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]
    return text[0].upper() + text[1:] + "."


def describe_scene(world):
    items, word = world["items"], world["word"]
    if not world["cells"]:
        if word:
            return f"The printed word {word}."
        n = len(items)
        return "There is one shape." if n == 1 else f"There are {lang.NUMBERS[n] if n else 'no'} shapes."
    parts = [(i["row"], i["col"], f"{lang.a(i['colour'])} {i['shape']} {lang.AT[place(i)]}") for i in items]
    if word:
        parts.append((world["word_row"], 1, f"the word {word} {lang.AT[lang.PLACES[world['word_row']][1]]}"))
    return listing([text for _, _, text in sorted(parts)])


def ask_shape(rng, world):
    items = world["items"]
    if len(items) == 1 and rng.random() < 0.7:
        return pick(rng, lang.SHAPE_ONE), items[0]["shape"]
    item = pick(rng, items)
    if sum(i["colour"] == item["colour"] for i in items) > 1 or rng.random() < 0.25:
        return pick(rng, lang.SHAPE_AT).format(at=lang.AT[place(item)]), item["shape"]
    return pick(rng, lang.SHAPE_OF).format(c=item["colour"]), item["shape"]


def ask_colour(rng, world):
    items = world["items"]
    if len(items) == 1 and rng.random() < 0.6:
        return pick(rng, lang.COLOUR_ONE), items[0]["colour"]
    item = pick(rng, items)
    if sum(i["shape"] == item["shape"] for i in items) > 1 or rng.random() < 0.25:
        return pick(rng, lang.COLOUR_AT).format(at=lang.AT[place(item)]), item["colour"]
    return pick(rng, lang.COLOUR_OF).format(s=item["shape"]), item["colour"]


def ask_position(rng, world):
    items = world["items"]
    if len(items) > 1 and rng.random() < 0.5:
        one, two = some(rng, items, 2)
        first, second = reference(rng, items, one), reference(rng, items, two)
        axis = "col" if rng.random() < 0.5 else "row"
        if one[axis] == two[axis]:
            axis = "row" if axis == "col" else "col"
        before = one[axis] < two[axis]
        if rng.random() < 0.6:
            phrases = lang.LEFT_RIGHT if axis == "col" else lang.ABOVE_BELOW
            answer = ("left" if before else "right") if axis == "col" else ("above" if before else "below")
            return pick(rng, phrases).format(a=first, b=second), answer
        way = pick(rng, ["left", "right"] if axis == "col" else ["up", "down"])
        wins = before == (way in ("left", "up"))
        return pick(rng, lang.FURTHER[way]).format(a=first, b=second), "the " + (first if wins else second)
    item = pick(rng, items)
    name = pick(rng, ["shape", "object"]) if len(items) == 1 and rng.random() < 0.3 else reference(rng, items, item)
    return pick(rng, lang.WHERE).format(o=name), place(item)


def ask_count(rng, world):
    items = world["items"]
    if rng.random() < 0.45 or (not items and "kinds" not in world):
        return pick(rng, lang.COUNT_ALL), lang.NUMBERS[len(items)]
    pool = [(i["shape"], i["colour"]) for i in items] + list(world.get("kinds", []))
    shape, colour = pick(rng, pool)
    if rng.random() < 0.12:
        shape, colour = pick(rng, lang.SHAPES), pick(rng, list(lang.COLOURS))
    if rng.random() < 0.55:
        phrase, n = lang.PLURALS[shape], sum(i["shape"] == shape for i in items)
    else:
        phrase, n = f"{colour} {pick(rng, ['shapes', 'objects'])}", sum(i["colour"] == colour for i in items)
    return pick(rng, lang.COUNT_OF).format(p=phrase), lang.NUMBERS[n]


def ask_exists(rng, world):
    items = world["items"]
    if items and rng.random() < 0.5:
        item = pick(rng, items)
        o = named(item)
    else:
        base = new_shape(rng) if not items or rng.random() < 0.4 else pick(rng, items)
        shape, colour = base["shape"], base["colour"]
        if rng.random() < 0.5:
            shape = pick(rng, lang.SHAPES)
        else:
            colour = pick(rng, list(lang.COLOURS))
        o = f"{colour} {shape}"
    if rng.random() < 0.3:
        o = o.split()[1]
        found = any(i["shape"] == o for i in items)
    else:
        found = any(named(i) == o for i in items)
    phrase = pick(rng, lang.EXISTS).format(o=o)
    if o[0] in "aeiou":
        phrase = phrase.replace(" a " + o, " an " + o)
    return phrase, "yes" if found else "no"


def ask_words(rng, world):
    return pick(rng, lang.READ), world["word"] or lang.NO_TEXT


def ask_describe(rng, world):
    return pick(rng, lang.DESCRIBE), describe_scene(world)


def ask_grounding(rng, world):
    """Boxes in thousandths of the picture's width and height, from left to right."""
    items = world["items"]
    shape = pick(rng, items)["shape"]
    alike = [i for i in items if i["shape"] == shape]
    sure = [i for i in items if sum(named(o) == named(i) for o in items) == 1]
    if len(alike) <= 3 and (rng.random() < (0.6 if len(alike) > 1 else 0.15) or not sure):
        found, name = alike, lang.PLURALS[shape]
        question = pick(rng, lang.GROUND_ALL)
    else:
        item = pick(rng, sure or items)
        found, name = [item], reference(rng, items, item)
        question = pick(rng, lang.GROUND)
    parts = []
    for box in sorted(i["box"] for i in found):
        limits = world["size"] * 2
        parts.append([min(999, max(0, round(999 * v / limit))) for v, limit in zip(box, limits)])
    return question.format(o=name), f"<|ref|>{name}<|/ref|><|det|>{parts}<|/det|>"


ASK = {
    "shape": ask_shape,
    "colour": ask_colour,
    "position": ask_position,
    "count": ask_count,
    "exists": ask_exists,
    "words": ask_words,
    "describe": ask_describe,
    "grounding": ask_grounding,
}


def questions_of_scene(rng, world, want, n):
    """n turns about one scene; `want`, where given, comes first."""
    if "digits" in world:
        names = [lang.NUMBERS[d] for d in world["digits"]]
        text = " ".join(names)
        turns = [("handwriting", pick(rng, lang.DIGITS), text)]
        noun = "digit" if len(names) == 1 else "digits"
        if n > 1 or want == "describe":
            turns.append(("describe", pick(rng, lang.DESCRIBE), f"The handwritten {noun} {text}."))
        return turns[::-1] if want == "describe" else turns
    items = world["items"]
    if world["cells"]:
        able = ["shape", "colour", "position", "position", "count", "exists", "describe"] if items else ["describe"]
        able += ["words"] * (3 if world["word"] else int(rng.random() < 0.08))
        able += ["grounding"] * int(bool(items) and "grounding" in STYLE.kinds)
    elif world.get("boxes"):
        able = ["grounding", "grounding", "grounding", "count", "exists"]
    elif world["word"]:
        able = ["words", "words", "words", "exists", "count", "describe"] if not items else ["words"]
    else:
        able = ["count", "count", "count", "exists", "describe"]
    chosen = [want] if want else []
    while len(chosen) < n:
        chosen.append(pick(rng, able))
    turns = []
    for kind in chosen:
        q, answer = ASK[kind](rng, world)
        if all(q != t[1] for t in turns):
            turns.append((kind, q, answer))
    return turns


def compare_sample(rng, n):
    small = rng.random() < 0.7
    sizes = [canvas_size(rng, small=small) for _ in range(2)]
    if rng.random() < 0.5:
        sizes[1] = sizes[0]
    turns = []
    if rng.random() < 0.55:
        one = new_shape(rng)
        u = rng.random()
        shape = one["shape"] if u < 0.55 else pick(rng, lang.SHAPES)
        colour = one["colour"] if u < 0.25 or 0.55 <= u < 0.85 else pick(rng, list(lang.COLOURS))
        two = new_shape(rng, shape, colour)
        pictures = []
        for item, size in zip((one, two), sizes):
            least = min(size)
            r = float(rng.uniform(max(12 / STYLE.zoom(*size), 0.12 * least), 0.36 * least))
            item |= {
                "r": r,
                "angle": spin(rng),
                "x": float(rng.uniform(r, size[0] - r)),
                "y": float(rng.uniform(r, size[1] - r)),
            }
            canvas = ground(rng, size, [item["rgb"]])
            paint_shape(rng, canvas, item)
            pictures.append(draw.weather(rng, canvas))
        for _ in range(n):
            u = rng.random()
            if u < 0.55:
                what = pick(rng, ["colour", "shape"])
                turns.append((pick(rng, lang.SAME[what]), "yes" if one[what] == two[what] else "no"))
            elif u < 0.8:
                what, k = pick(rng, ["colour", "shape"]), int(rng.integers(2))
                turns.append((pick(rng, lang.NTH[what]).format(n=["first", "second"][k]), (one, two)[k][what]))
            else:
                parts = [f"the {w}" for w in ("colour", "shape") if one[w] != two[w]]
                turns.append((pick(rng, lang.DIFFERENT), " and ".join(parts) or "nothing"))
    else:
        counts = [int(v) for v in rng.integers(1, 7, 2)]
        if rng.random() < 0.12:
            counts[1] = counts[0]
        scenes = [count_scene(rng, c, s) for c, s in zip(counts, sizes)]
        pictures = [s[0] for s in scenes]
        counts = [len(s[1]["items"]) for s in scenes]
        for _ in range(n):
            u = rng.random()
            if u < 0.6:
                way = pick(rng, ["more", "fewer"])
                if counts[0] == counts[1]:
                    answer = "both the same"
                else:
                    answer = "the first" if (counts[0] > counts[1]) == (way == "more") else "the second"
                turns.append((pick(rng, lang.MORE[way]), answer))
            elif u < 0.75:
                turns.append((pick(rng, lang.SAME["count"]), "yes" if counts[0] == counts[1] else "no"))
            else:
                k = int(rng.integers(2))
                turns.append((pick(rng, lang.NTH["count"]).format(n=["first", "second"][k]), lang.NUMBERS[counts[k]]))
    return pictures, [("compare", q, answer) for q, answer in turns]


def three_sample(rng, n):
    """Three small pictures with one shape each."""
    pictures, items = [], []
    for _ in range(3):
        size = canvas_size(rng, small=True)
        r = float(rng.uniform(0.2, 0.4)) * min(size)
        place = {"x": float(rng.uniform(r, size[0] - r)), "y": float(rng.uniform(r, size[1] - r))}
        items.append(new_shape(rng) | place | {"r": r, "angle": spin(rng)})
        canvas = ground(rng, size, [items[-1]["rgb"]])
        paint_shape(rng, canvas, items[-1])
        pictures.append(draw.weather(rng, canvas))
    turns = []
    for _ in range(n):
        k, what = int(rng.integers(3)), pick(rng, ["colour", "shape"])
        alone = sum(named(i) == named(items[k]) for i in items) == 1
        if alone and rng.random() < 0.4:
            turns.append((pick(rng, lang.WHICH).format(o=lang.a(named(items[k]))), "the " + lang.ORDER[k]))
        else:
            turns.append((pick(rng, lang.NTH[what]).format(n=lang.ORDER[k]), items[k][what]))
    return pictures, [("compare", q, answer) for q, answer in turns]


def clip_sample(rng, n, **fixed):
    frames, world = clip_scene(rng, **fixed)
    item, direction = world["item"], world["direction"]
    names = [item["shape"], named(item)] + ([] if world["other"] else ["shape", "object", "shape"])
    fps = 2.0 if rng.random() < 0.85 else 1.0
    turns = []
    for k in range(n):
        u = rng.random()
        if u < 0.6:
            turns.append(
                (
                    "motion",
                    pick(rng, lang.MOTION).format(o=pick(rng, names)),
                    lang.STILL if direction == "still" else direction,
                )
            )
        elif u < 0.8 and direction != "still" and fps == 2.0:
            turns.append(("motion", pick(rng, lang.SPEED).format(o=pick(rng, names)), world["speed"]))
        elif (k > 0 or u > 0.93) and not world["other"]:
            what = pick(rng, ["shape", "colour"])
            turns.append(
                (
                    what,
                    pick(rng, lang.SHAPE_ONE if what == "shape" else lang.COLOUR_ONE).replace("picture", "video"),
                    item[what],
                )
            )
        else:
            verb = {"still": "stays still", "up": "moves up", "down": "moves down"}.get(
                direction, f"moves to the {direction}"
            )
            turns.append(
                (
                    "motion",
                    pick(rng, lang.DESCRIBE_CLIP),
                    f"{lang.a(item['colour'])} {item['shape']} {verb}.".capitalize(),
                )
            )
    return frames, turns, fps


def styled(rng, question):
    """Everyday variation of a question's form."""
    u = rng.random()
    if u < 0.1:
        question = question.lower()
    elif u < 0.17 and question[-1] in "?.":
        question = question[:-1]
    if rng.random() < 0.1:
        question = question + " " + pick(rng, lang.SUFFIXES)
    elif rng.random() < 0.05:
        question = pick(rng, lang.PREFIXES) + " " + question
    return question


# Samples ---------------------------------------------------------------------------------------------------------


def draw_scene(rng, what, held_out):
    if what == "cells":
        return cell_scene(rng)
    if what == "count":
        return count_scene(rng)
    if what == "word":
        return word_scene(rng)
    if what == "ground":
        return ground_scene(rng)
    return digit_scene(rng, held_out)


def conversation(rng, media, turns, video, plain):
    """Puts the pictures into the first user turn (sometimes after the text, sometimes numbered)."""
    out = []
    tag = "video" if video else "image"
    for k, (kind, question, answer) in enumerate(turns):
        text = question if kind == "grounding" and rng.random() < 0.8 else styled(rng, question)
        if k or not media:
            content = [text]
        elif plain or rng.random() < 0.92:
            numbered = not plain and rng.random() < (0.25 if media > 1 else 0.04)
            content = [
                p
                for m in range(media)
                for p in (([STYLE.labels[tag].format(m + 1)] if numbered else []) + [tag])
            ] + [text]
        else:
            content = [text + " "] + [tag] * media
        out.append((content, answer))
    return out


def training_sample(rng):
    what = rng.choice(list(STYLE.mix), p=list(STYLE.mix.values()))
    n = int(rng.choice([1, 2, 3, 4], p=[0.3, 0.25, 0.25, 0.2]))
    images, fps = [], None
    if what == "text":
        chosen = some(rng, STYLE.text_only, int(rng.integers(1, 4)))
        turns = [("text", pick(rng, questions), answer) for questions, answer in chosen]
    elif what == "compare":
        images, turns = compare_sample(rng, n)
    elif what == "three":
        images, turns = three_sample(rng, n)
    elif what == "clip":
        images, turns, fps = clip_sample(rng, n)
    else:
        image, world = draw_scene(rng, what, False)
        images, turns = [image], questions_of_scene(rng, world, None, n)
        if what == "digits" and rng.random() < 0.9:
            turns = turns[:1]
        elif what == "word" and rng.random() < 0.8:
            turns = turns[:2]
    if what != "text" and rng.random() < 0.02:
        questions, answer = pick(rng, STYLE.text_only)
        turns.append(("text", pick(rng, questions), answer))
    u = rng.random()
    usual, other = STYLE.systems
    system = STYLE.system if u < usual else (pick(rng, lang.SYSTEMS) if u < other else None)
    media = 0 if what == "text" else (1 if fps else len(images))
    return {
        "images": images,
        "video": fps is not None,
        "fps": fps,
        "system": system,
        "kinds": [t[0] for t in turns],
        "turns": conversation(rng, media, turns, fps is not None, False),
    }


def held_out_sample(rng, kind, size=None):
    """One question of a kind, with the usual system turn; 'turns' has three, the last one counts."""
    images, fps = [], None
    sized = {"size": size} if size else {}
    if kind == "text":
        questions, answer = pick(rng, STYLE.text_only)
        turns = [(kind, pick(rng, questions), answer)]
    elif kind == "compare":
        three = "three" in STYLE.mix and rng.random() < 0.2
        images, turns = (three_sample if three else compare_sample)(rng, 1)
    elif kind == "motion":
        while not fps or turns[0][0] != "motion":
            images, turns, fps = clip_sample(rng, 1)
    elif kind == "handwriting":
        image, world = digit_scene(rng, True, **sized)
        images, turns = [image], questions_of_scene(rng, world, None, 1)
    else:
        if kind == "words":
            scene = word_scene if rng.random() < 0.6 else lambda g, **k: cell_scene(g, word=new_word(g), **k)
        elif kind == "count":
            scene = count_scene if rng.random() < 0.8 else cell_scene
        elif kind == "grounding":
            scene = ground_scene if rng.random() < 0.7 else lambda g, **k: cell_scene(g, count=pick(g, [1, 2, 3]), **k)
        else:
            scene = cell_scene
        image, world = scene(rng, **sized)
        if kind == "turns":
            turns = []
            while len(turns) != 3:
                turns = questions_of_scene(rng, world, None, 3)
        else:
            turns = questions_of_scene(rng, world, kind, 1)
        images = [image]
    media = 0 if kind == "text" else (1 if fps else len(images))
    return {
        "images": images,
        "video": fps is not None,
        "fps": fps,
        "system": STYLE.system,
        "kinds": [kind] * len(turns),
        "turns": conversation(rng, media, turns, fps is not None, True),
    }
