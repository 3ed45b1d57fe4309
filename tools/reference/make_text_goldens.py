"""Writes tests/data/text: a small byte-level tokenizer.json and what Hugging Face tokenizers makes of tricky strings.

goldens.json is a list of variants: {"name", "replace": top-level keys of tokenizer.json that differ, "cases"}, a case
being [text, ids of ordinary text, ids with added tokens recognised, those decoded, the same without special tokens].
What is null or missing at the end of a case equals the item before it, the decoded text the text.
usage: make_text_goldens.py OUT
"""

import json
import pathlib
import random
import sys

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizer_parity import TEXTS, strings

from make_qwen_tokenizer import PATTERN

BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
DEEPSEEK_V3 = [
    r"\p{N}{1,3}",
    "[一-龥\u3040-ゟ゠-ヿ]+",
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
    "| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+",
]
DEEPSEEK_LLM = ["[\r\n]", r"\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓͰ-ͳΑ-Ωα-ωА-я]+", r"\s?[!-/:-~！-／：-～‘-‟　-。]+", r"\s+$", "[一-龥ࠀ-一가-퟿]+"]
LLAMA_3 = PATTERN.replace(r"|\p{N}|", r"|\p{N}{1,3}|")


def token(id, content, **flags):
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True} | flags
    return {"id": id, "content": content} | flags


def split(pattern, behavior="Isolated", invert=False, kind="Regex"):
    return {"type": "Split", "pattern": {kind: pattern}, "behavior": behavior, "invert": invert}


def sequence(*steps):
    return {"type": "Sequence", "pretokenizers": [*steps, BYTE_LEVEL]}


def base():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS * 2, trainer)
    result = json.loads(tokenizer.to_str())
    n = len(result["model"]["vocab"])
    contents = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|image_pad|>"]
    result["added_tokens"] = [token(n + i, c) for i, c in enumerate(contents)]
    result["added_tokens"].append(token(n + 4, "<tool_call>", special=False))
    return result


def variants(tokenizer):
    n = len(tokenizer["model"]["vocab"])
    legacy = dict(tokenizer["model"], merges=[" ".join(m) for m in tokenizer["model"]["merges"]])
    yield "qwen", {}, 200
    yield "deepseek v3", {
        "normalizer": {"type": "Sequence", "normalizers": []},
        "pre_tokenizer": sequence(*map(split, DEEPSEEK_V3)),
    }, 60
    yield "deepseek llm", {
        "normalizer": None,
        "pre_tokenizer": sequence(*map(split, DEEPSEEK_LLM), {"type": "Digits", "individual_digits": True}),
    }, 60
    yield "llama 3", {"pre_tokenizer": sequence(split(LLAMA_3))}, 30
    yield "digits together", {"pre_tokenizer": sequence({"type": "Digits", "individual_digits": False})}, 20
    for prefix in (False, True):
        steps = [{"type": "Digits", "individual_digits": True}] if prefix else []
        whole = dict(BYTE_LEVEL, use_regex=True, add_prefix_space=prefix)
        pre = {"type": "Sequence", "pretokenizers": [*steps, whole]} if prefix else whole
        yield f"gpt2, add_prefix_space {prefix}", {"pre_tokenizer": pre}, 30
    yield "strings as merges", {"model": {k: v for k, v in legacy.items() if k != "vocab"} | {"vocab": None}}, 10
    yield "ignore_merges", {"model": {"ignore_merges": True, "merges": [], "vocab": None}}, 10
    yield "strip and normalized", {
        "added_tokens": [
            token(n, "<|im_end|>", lstrip=True, rstrip=True),
            token(n + 1, "<|im_start|>", rstrip=True, special=False),
            token(n + 2, "<|im", lstrip=True),
            token(n + 3, "caf\u00e9", normalized=True, special=False),
            token(n + 4, "ab\u0301", normalized=False, special=False),
            token(n + 5, "\u212bngstrom", normalized=True, special=False),
            token(n + 6, " x", special=False),
            token(tokenizer["model"]["vocab"]["he"], "he", special=False),
        ]
    }, 30
    for behavior in "Removed Isolated MergedWithPrevious MergedWithNext Contiguous".split():
        for invert in (False, True):
            yield f"{behavior}, invert {invert}", {
                "pre_tokenizer": sequence(split(r"[ab]c|\s", behavior, invert), split("l", behavior, invert, "String"))
            }, 3


TRICKY = [
    "ac bc  cab hello  all\n acbc",
    "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n",
    "a <|im_end|>  b<|im_end|> <|im_end|><|im_en <|im_start|>\t\n x x<|im",
    "cafe\u0301 caf\u00e9 ab\u0301 \u00e1b\u0301 \u212bngstrom \u00c5ngstrom A\u030angstrom he her",
    "<tool_call>{\"a\": 1}</tool_call> <|image_pad|><|endoftext|>",
    "don't DON'T 'ſ 'K we'LL",
    " ",
    "  \n  \n   x   ",
    "\r\n\r\n\t\r",
    "1234567 12 3.5 ١٢٣ ½ Ⅻ 𑷠 𖿴",
    "\u0000\u0001\u007f\u0085\u00a0\u200b\u2028\ufeff",
    "\u1100\u1161\u11a8 \uac00\u11a8 \u0958 \u2adc \u0344 \U0001d15e",
    "e\u0301\u0323 q\u0323\u0307 \u089f\u0323 \U000105d2\u0307 \U00016d67\U00016d67",
    "\ue000\uffff\U0010ffff\U0001f9d1\u200d\U0001f680",
]


def main():
    out = pathlib.Path(sys.argv[1])
    tokenizer = base()
    (out / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False) + "\n")
    generated = (s for s in strings(random.Random(7), ["<|im_start|>", "<|im_end|>", "<tool_call>", "\n"], 10000))
    pool = [s for s in generated if 0 < len(s) < 60][-4000:]
    rng = random.Random(8)
    goldens = []
    for name, replace, count in variants(tokenizer):
        full = json.loads(json.dumps(tokenizer | replace))
        if "model" in replace:
            full["model"] = tokenizer["model"] | {k: v for k, v in replace["model"].items() if v is not None}
            replace["model"] = {k: v for k, v in replace["model"].items() if k in ("merges", "ignore_merges")}
        reference = Tokenizer.from_str(json.dumps(full))
        plain = Tokenizer.from_str(json.dumps(full | {"added_tokens": []}))
        cases = []
        for text in TRICKY + (TEXTS if name == "qwen" else []) + rng.sample(pool, count):
            ordinary = plain.encode(text, add_special_tokens=False).ids
            special = reference.encode(text, add_special_tokens=False).ids
            decoded = reference.decode(special, skip_special_tokens=False)
            skipped = reference.decode(special, skip_special_tokens=True)
            case = [
                text,
                ordinary,
                None if special == ordinary else special,
                None if decoded == text else decoded,
                None if skipped == decoded else skipped,
            ]
            while case[-1] is None:
                case.pop()
            cases.append(case)
        goldens.append({"name": name, "replace": replace, "cases": cases})
    lines = [
        json.dumps({k: g[k] for k in ("name", "replace")}, ensure_ascii=False)[:-1]
        + ', "cases": [\n'
        + ",\n".join(json.dumps(c, separators=(",", ":")) for c in g["cases"])
        + "\n]}"
        for g in goldens
    ]
    (out / "goldens.json").write_text("[\n" + ",\n".join(lines) + "\n]\n")


if __name__ == "__main__":
    main()
