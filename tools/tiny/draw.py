"""Draws shapes, words, handwriting and backgrounds with Pillow. All sizes are in pixels of the canvas."""

import io
import math
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from language import COLOURS

FONT_FOLDER = Path("/usr/share/fonts/truetype/dejavu")
FONTS = [
    "DejaVuSans.ttf",
    "DejaVuSans-Bold.ttf",
    "DejaVuSansCondensed.ttf",
    "DejaVuSansCondensed-Bold.ttf",
    "DejaVuSerif.ttf",
    "DejaVuSerif-Bold.ttf",
    "DejaVuSerifCondensed-Bold.ttf",
    "DejaVuSansMono.ttf",
    "DejaVuSansMono-Bold.ttf",
    "DejaVuSans-Oblique.ttf",
    "DejaVuSerif-Italic.ttf",
]


def polygon(points, turns):
    return [
        (math.sin(2 * math.pi * (k / points + turns)), -math.cos(2 * math.pi * (k / points + turns)))
        for k in range(points)
    ]


def outline(shape, angle):
    """Corner points of a shape within the unit circle."""
    if shape == "square":
        points = [(-0.78, -0.78), (0.78, -0.78), (0.78, 0.78), (-0.78, 0.78)]
    elif shape == "diamond":
        points = [(0, -1), (0.68, 0), (0, 1), (-0.68, 0)]
    elif shape == "triangle":
        points = [(0, -0.95), (0.9, 0.75), (-0.9, 0.75)]
    elif shape == "star":
        points = [(x * r, y * r) for k, (x, y) in enumerate(polygon(10, 0)) for r in [1.0 if k % 2 == 0 else 0.42]]
    elif shape == "cross":
        t = 0.3
        points = [
            (-t, -1),
            (t, -1),
            (t, -t),
            (1, -t),
            (1, t),
            (t, t),
            (t, 1),
            (-t, 1),
            (-t, t),
            (-1, t),
            (-1, -t),
            (-t, -t),
        ]
        points = [(0.92 * x, 0.92 * y) for x, y in points]
    elif shape == "heart":
        points = []
        for k in range(36):
            t = 2 * math.pi * k / 36
            x = 16 * math.sin(t) ** 3
            y = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
            points.append((x / 17.5, -(y + 2.5) / 17.5))
    else:
        raise ValueError(shape)
    c, s = math.cos(angle), math.sin(angle)
    return [(x * c - y * s, x * s + y * c) for x, y in points]


def shape_mask(shape, radius, angle):
    """Anti-aliased coverage of a shape, an L image of side 2 * ceil(radius) + 2."""
    half = math.ceil(radius) + 1
    scale = 4 if radius < 40 else 2
    mask = Image.new("L", (2 * half * scale, 2 * half * scale), 0)
    pen = ImageDraw.Draw(mask)
    centre, r = half * scale, radius * scale
    if shape in ("circle", "ring"):
        k = 0.92 * r
        pen.ellipse((centre - k, centre - k, centre + k, centre + k), fill=255)
        if shape == "ring":
            k = 0.52 * r
            pen.ellipse((centre - k, centre - k, centre + k, centre + k), fill=0)
    else:
        pen.polygon([(centre + r * x, centre + r * y) for x, y in outline(shape, angle)], fill=255)
    return mask.reduce(scale)


def put(canvas, mask, x, y, colour):
    """Paints through a mask centred at (x, y); returns the mask's top left corner."""
    corner = round(x - mask.width / 2), round(y - mask.height / 2)
    canvas.paste(colour, corner, mask)
    return corner


def jitter(rng, colour, amount=14):
    return tuple(int(np.clip(v + rng.integers(-amount, amount + 1), 0, 255)) for v in colour)


def paint(rng, name):
    return jitter(rng, COLOURS[name], 8 if name in ("black", "white") else 14)


def distance(a, b):
    """Colour distance with the eye's weights (red mean approximation)."""
    m = (float(a[0]) + float(b[0])) / 2
    d = [float(x) - float(y) for x, y in zip(a, b)]
    return math.sqrt((2 + m / 256) * d[0] ** 2 + 4 * d[1] ** 2 + (2 + (255 - m) / 256) * d[2] ** 2) / 3


def background_colour(rng, avoid, gap=62):
    """A ground that keeps every colour of `avoid` visible: pale mostly, sometimes dark, grey or tinted."""
    best, best_gap = None, -1.0
    for _ in range(24):
        kind = rng.random()
        if kind < 0.5:
            base = rng.integers(205, 256, 3)
        elif kind < 0.7:
            base = rng.integers(10, 70, 3)
        elif kind < 0.85:
            base = np.full(3, rng.integers(60, 220)) + rng.integers(-10, 11, 3)
        else:
            base = rng.integers(40, 230, 3)
        base = tuple(int(v) for v in base)
        now = min([distance(base, c) for c in avoid] + [400.0])
        if now >= gap:
            return base
        if now > best_gap:
            best, best_gap = base, now
    return best


def background(rng, width, height, base):
    kind = rng.random()
    small = lambda n, spread: np.clip(np.array(base) + rng.integers(-spread, spread + 1, (n, n, 3)), 0, 255).astype(
        np.uint8
    )
    if kind < 0.35:
        return Image.new("RGB", (width, height), base)
    if kind < 0.6:
        return Image.fromarray(small(2, 26)).resize((width, height), Image.BILINEAR)
    if kind < 0.8:
        return Image.fromarray(small(int(rng.integers(3, 9)), 16)).resize((width, height), Image.BICUBIC)
    canvas = Image.new("RGB", (width, height), base)
    pen = ImageDraw.Draw(canvas)
    other = jitter(rng, base, 16)
    step = max(6, int(min(width, height) * rng.uniform(0.06, 0.2)))
    if kind < 0.9:
        for x in range(0, width, 2 * step):
            pen.rectangle((x, 0, x + step, height), fill=other)
    else:
        for y in range(0, height, step):
            for x in range((y // step % 2) * step, width, 2 * step):
                pen.rectangle((x, y, x + step - 1, y + step - 1), fill=other)
    return canvas


@lru_cache(maxsize=1)
def noise_bank():
    return np.random.default_rng(7).normal(0, 1, (700, 700, 3)).astype(np.float32)


def weather(rng, canvas, noise=0.35, blur=0.12, jpeg=0.3):
    """Camera-like damage: noise, a little blur, JPEG."""
    if rng.random() < blur:
        canvas = canvas.filter(
            ImageFilter.GaussianBlur(float(rng.uniform(0.3, 0.8)) * max(1.0, min(canvas.size) / 240))
        )
    if rng.random() < noise and max(canvas.size) <= 400:
        bank = noise_bank()
        y, x = int(rng.integers(0, 700 - canvas.height)), int(rng.integers(0, 700 - canvas.width))
        grain = bank[y : y + canvas.height, x : x + canvas.width] * float(rng.uniform(1, 9))
        canvas = Image.fromarray(np.clip(np.asarray(canvas) + grain, 0, 255).astype(np.uint8))
    if rng.random() < jpeg:
        data = io.BytesIO()
        canvas.save(data, "JPEG", quality=int(rng.integers(55, 96)))
        canvas = Image.open(data).convert("RGB")
    return canvas


@lru_cache(maxsize=600)
def font(name, size):
    return ImageFont.truetype(str(FONT_FOLDER / name), size)


def text_mask(text, name, size, angle):
    """Coverage of a printed text, cropped to its ink plus a margin."""
    face = font(name, size)
    x0, y0, x1, y1 = face.getbbox(text)
    mask = Image.new("L", (x1 - x0 + 6, y1 - y0 + 6), 0)
    ImageDraw.Draw(mask).text((3 - x0, 3 - y0), text, fill=255, font=face)
    if abs(angle) > 0.2:
        mask = mask.rotate(angle, Image.BICUBIC, expand=True)
    return mask


def digit_mask(rng, pixels, size):
    """A handwritten digit (8x8, values 0..16) as smooth ink about `size` high, slightly bent and turned."""
    side = 64
    ink = Image.fromarray((pixels * 15.9375).astype(np.uint8)).resize((44, 44), Image.BICUBIC)
    field = Image.new("L", (side, side), 0)
    field.paste(ink, (10, 10))
    angle, shear = math.radians(float(rng.uniform(-13, 13))), float(rng.uniform(-0.16, 0.16))
    sx, sy = float(rng.uniform(0.86, 1.16)), float(rng.uniform(0.88, 1.12))
    c, s = math.cos(angle), math.sin(angle)
    m = np.array([[c, -s], [s, c]]) @ np.array([[1 / sx, shear], [0, 1 / sy]])
    t = np.array([32, 32]) - m @ np.array([32, 32])
    field = field.transform((side, side), Image.AFFINE, (m[0, 0], m[0, 1], t[0], m[1, 0], m[1, 1], t[1]), Image.BICUBIC)
    if rng.random() < 0.7:
        field = bend(rng, field, 2.8)
    low, gain = float(rng.uniform(0.22, 0.42)) * 255, float(rng.uniform(1.6, 3.4))
    field = field.point([int(np.clip((v - low) * gain, 0, 255)) for v in range(256)])
    box = field.getbbox() or (8, 8, 56, 56)
    field = field.crop((max(0, box[0] - 2), max(0, box[1] - 2), min(side, box[2] + 2), min(side, box[3] + 2)))
    scale = size / side * 1.45
    return field.resize((max(4, round(field.width * scale)), max(6, round(field.height * scale))), Image.BICUBIC)


def bend(rng, image, amount):
    """Elastic distortion: a 3x3 grid of points moved at random."""
    n, side = 3, image.width
    step = side / n
    dx, dy = rng.uniform(-amount, amount, (2, n + 1, n + 1))
    corner = lambda i, j: (i * step + dx[j, i], j * step + dy[j, i])
    mesh = []
    for j in range(n):
        for i in range(n):
            box = (round(i * step), round(j * step), round((i + 1) * step), round((j + 1) * step))
            mesh.append((box, (*corner(i, j), *corner(i, j + 1), *corner(i + 1, j + 1), *corner(i + 1, j))))
    return image.transform(image.size, Image.MESH, mesh, Image.BILINEAR)
