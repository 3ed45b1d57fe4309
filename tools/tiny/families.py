"""The model families by name. Each is a package with the same modules: tokenizer, checkpoint, preprocess, style,
packing and model."""

from importlib import import_module
from types import SimpleNamespace

import scenes

PACKAGES = {"qwen2.5-vl": "qwen2_5_vl", "deepseek-vl2": "deepseek_vl2"}


def use(name):
    """The modules of a family, whose style the scenes take on."""
    names = ("checkpoint", "style", "packing", "model")
    family = SimpleNamespace(**{n: import_module(f"{PACKAGES[name]}.{n}") for n in names})
    scenes.STYLE = family.style.STYLE
    return family
