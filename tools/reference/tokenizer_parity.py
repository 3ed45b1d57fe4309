"""Compares the C++ tokenizer with Hugging Face tokenizers on generated strings, ids and decoded text alike.

usage: tokenizer_parity.py TOKENIZER_DUMP TOKENIZER_JSON... [--count N] [--seed S]
TOKENIZER_DUMP is the built test tool tokenizer_dump. Exit status 1 on any difference.
"""

import argparse
import json
import pathlib
import random
import subprocess
import sys
import tempfile

from tokenizers import Tokenizer

RANGES = {
    "ascii": (0x20, 0x7E),
    "latin": (0xA0, 0x24F),
    "marks": (0x300, 0x36F),
    "greek": (0x370, 0x3FF),
    "cyrillic": (0x400, 0x4FF),
    "hebrew": (0x590, 0x5FF),
    "arabic": (0x600, 0x6FF),
    "devanagari": (0x900, 0x97F),
    "tamil": (0xB80, 0xBFF),
    "thai": (0xE00, 0xE7F),
    "tibetan": (0xF00, 0xFFF),
    "jamo": (0x1100, 0x11FF),
    "vietnamese": (0x1E00, 0x1EFF),
    "greek extended": (0x1F00, 0x1FFF),
    "punctuation": (0x2000, 0x206F),
    "symbols": (0x2100, 0x2BFF),
    "kana": (0x3040, 0x30FF),
    "han": (0x4E00, 0x9FFF),
    "hangul": (0xAC00, 0xD7A3),
    "compatibility": (0xF900, 0xFAFF),
    "halfwidth": (0xFF00, 0xFFEF),
    "math": (0x1D400, 0x1D7FF),
    "music": (0x1D100, 0x1D1FF),
    "emoji": (0x1F300, 0x1FAFF),
    "han b": (0x20000, 0x2A6DF),
    "bmp": (0x0, 0xFFFF),
    "any": (0x0, 0x10FFFF),
}
SPACES = [chr(c) for c in (9, 10, 11, 12, 13, 28, 31, 32, 0x85, 0xA0, 0x1680, 0x200B, 0x2003, 0x2028, 0x202F, 0x3000)]
TEXTS = [
    "The quick brown fox jumps over the lazy dog. It's they'RE we'LL I'D don'T 'Sup rock'n'roll can\u2019t 'ſ 'K",
    "int main(void) {\r\n\tfor (int i = 0; i < 10; ++i) {\n\t\tprintf(\"%d\\n\", i);\n\t}\n\treturn 0;\n}\n",
    "def f(x):\n    return {k: v**2 for k, v in x.items() if v is not None}  # ¿qué?\n\n\n",
    "<html><body class='a'>&nbsp;</body></html>\n<!-- x --> https://example.org/a?b=c&d=%20#e",
    "机器学习是人工智能的一个分支。我们今天去北京！価格は１２３円です。カタカナとひらがな、漢字。",
    "대한민국의 수도는 서울입니다. 한글 자모 ㄱㄴㄷ",
    "Привет, мир! Съешь ещё этих мягких французских булок",
    "مرحبا بالعالم ١٢٣ שלום עולם नमस्ते दुनिया வணக்கம் สวัสดีชาวโลก བོད་ཡིག",
    "Tiếng Việt có dấu: Xin chào thế giới. Ελληνικά: Καλημέρα κόσμε",
    "👨‍👩‍👧‍👦 👩🏽‍🚀 🏳️‍🌈 🇩🇪🇫🇷 ☺️ ✂︎ 1️⃣ 🫠 e\u0301 a\u0323\u0302 q\u0307\u0323 \u212b \u2126 \u1e9b\u0323",
    "3.14159 1,000,000 2024-01-31T12:00:00Z 0xDEADBEEF Ⅻ ½ ① ²",
    "a  b   c    \n\n  d \t e\t\t\r\n\r\n   \n",
    "x = y+z; a->b; !!??... ---===>>> $100 #hash @user ~~~ ``code`` «quote» „so“ — – …",
]


def char(rng, name):
    while True:
        c = rng.randint(*RANGES[name])
        if not 0xD800 <= c < 0xE000:
            return chr(c)


def fragment(rng, tokens):
    kind = rng.randrange(12)
    if kind == 0:
        text = rng.choice(TEXTS)
        a = rng.randrange(len(text))
        return text[a : a + rng.randint(1, 40)]
    if kind == 1:
        return "".join(rng.choice(SPACES) for _ in range(rng.randint(1, 6)))
    if kind == 2:
        return rng.choice(SPACES + ["a", "1", "\n", "\r\n", " ", ".", "é", "漢", "\u0301", "👍"]) * rng.choice(
            [1, 2, 3, 5, 17, 64, 300]
        )
    if kind == 3:
        return rng.choice(tokens)
    if kind == 4:
        token = rng.choice(tokens)
        return token[: rng.randrange(len(token) + 1)] + rng.choice(["", " ", "x", "|"])
    if kind == 5:
        return str(rng.randrange(10 ** rng.randint(1, 18)))
    if kind == 6:
        return rng.choice(["'", "\u2019", "’"]) + rng.choice("s S ſ t T re RE Re ve ll LL d D m M x".split())
    if kind == 7:
        base = char(rng, rng.choice(["ascii", "latin", "vietnamese", "devanagari", "kana", "jamo", "hangul"]))
        return base + "".join(char(rng, rng.choice(["marks", "jamo", "any"])) for _ in range(rng.randint(1, 4)))
    if kind == 8:
        return "\u200d".join(char(rng, "emoji") for _ in range(rng.randint(1, 4))) + rng.choice(["", "\ufe0f"])
    if kind == 9:
        return "".join(char(rng, "ascii") for _ in range(rng.randint(1, 12)))
    name = rng.choice(list(RANGES))
    return "".join(char(rng, name) for _ in range(rng.randint(1, 12)))


def strings(rng, tokens, count):
    """Fixed ones, every code point once in words of 16, then random mixtures."""
    yield ""
    yield from TEXTS
    yield from tokens[:200]
    for a in range(0, 0x110000, 16):
        if not 0xD800 <= a < 0xE000:
            block = [chr(c) for c in range(a, a + 16)]
            yield "".join(block)
            yield "a" + "a ".join(block) + "\u0323"
    for _ in range(count):
        yield "".join(fragment(rng, tokens) for _ in range(rng.randint(1, 8)))


def compare(dump, path, count, seed):
    reference = Tokenizer.from_file(path)
    added = [t.content for t in reference.get_added_tokens_decoder().values()]
    tokens = added[:40] + [t + " " for t in added[:3]]
    texts = list(strings(random.Random(seed), tokens, count))
    with tempfile.TemporaryDirectory() as folder:
        lines = pathlib.Path(folder) / "strings"
        lines.write_text("\n".join(map(json.dumps, texts)) + "\n")
        result = subprocess.run([dump, path, lines], check=True, stdout=subprocess.PIPE).stdout.splitlines()
    if len(result) != len(texts):
        sys.exit(f"{dump} wrote {len(result)} lines for {len(texts)} strings")
    # Ordinary text: the same tokenizer without its added tokens.
    plain = json.loads(reference.to_str())
    added_ids = {t["id"] for t in plain["added_tokens"]}
    plain["added_tokens"] = []
    plain = Tokenizer.from_str(json.dumps(plain))
    wrong = dict.fromkeys(("encode", "encode with special", "decode", "decode without special", "added ids"), 0)
    tokens_seen = shown = 0
    for start in range(0, len(texts), 1000):
        batch = texts[start : start + 1000]
        ordinary = [e.ids for e in plain.encode_batch(batch, add_special_tokens=False)]
        special = [e.ids for e in reference.encode_batch(batch, add_special_tokens=False)]
        decoded = reference.decode_batch(special, skip_special_tokens=False)
        skipped = reference.decode_batch(special, skip_special_tokens=True)
        for text, line, *expected in zip(batch, result[start:], ordinary, special, decoded, skipped):
            got = json.loads(line)
            bad = [name for name, a, b in zip(wrong, got, expected) if a != b]
            if added_ids.intersection(got[0]) and not added_ids.intersection(expected[0]):
                bad.append("added ids")
            tokens_seen += len(expected[1])
            for name in bad:
                wrong[name] += 1
            if bad and shown < 10:
                shown += 1
                print(f"{bad} on {text!r}"[:1000] + f"\n  got      {got}"[:1000] + f"\n  expected {expected}"[:1000])
    print(f"{path}: {len(texts)} strings, {tokens_seen} tokens; differences: {wrong}", flush=True)
    return sum(wrong.values())


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dump")
    parser.add_argument("tokenizers", nargs="+")
    parser.add_argument("--count", type=int, default=100000)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    sys.exit(any([compare(args.dump, t, args.count, args.seed) for t in args.tokenizers]))


if __name__ == "__main__":
    main()
