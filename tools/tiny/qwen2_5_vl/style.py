"""What the scenes and questions of the tiny Qwen2.5-VL are like."""

import math

import language
from scenes import KINDS, Style, between, standard

from .checkpoint import MAX_PIXELS, MIN_PIXELS
from .preprocess import smart_resize


def zoom(width, height):
    """Pixels of the model's input per canvas pixel."""
    h, w = smart_resize(height, width, MIN_PIXELS, MAX_PIXELS)
    return math.sqrt(h * w / (height * width))


STYLE = Style(
    kinds=KINDS,
    mix={"cells": 0.27, "count": 0.18, "word": 0.23, "digits": 0.15, "compare": 0.09, "clip": 0.07, "text": 0.01},
    zoom=zoom,
    sizes=[(0.68, between(112, 285)), (0.88, between(240, 420)), (0.97, standard), (1.0, between(420, 720))],
    small=between(112, 200),
    aspect=2,
    system="You are a helpful assistant.",
    systems=(0.8, 0.93),
    labels={"image": "Picture {}: ", "video": "Video {}: "},
    text_only=language.TEXT_ONLY,
)
