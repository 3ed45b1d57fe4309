"""What the scenes and questions of the tiny DeepSeek-VL2 are like: no clips, but boxes."""

import language
from scenes import KINDS, Style, between, standard, strip

from .preprocess import best_size


def zoom(width, height):
    """Pixels of the local tiles per canvas pixel."""
    w, h = best_size(width, height)
    return min(w / width, h / height)


STYLE = Style(
    kinds=[k for k in KINDS if k != "motion"] + ["grounding"],
    mix={
        "cells": 0.25,
        "count": 0.14,
        "word": 0.21,
        "digits": 0.13,
        "compare": 0.08,
        "three": 0.03,
        "ground": 0.15,
        "text": 0.01,
    },
    zoom=zoom,
    sizes=[
        (0.06, between(72, 129)),
        (0.68, between(112, 257)),
        (0.74, strip),
        (0.84, between(240, 420)),
        (0.94, standard),
        (1.0, between(420, 720)),
    ],
    small=between(100, 200),
    aspect=3.5,
    system=None,
    systems=(0.88, 1.0),
    labels={"image": "This is image_{}: "},
    text_only=language.TEXT_ONLY_BOXES,
)
