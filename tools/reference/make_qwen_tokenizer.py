"""Writes the Qwen2.5 tokenizer.json from a qwen.tiktoken rank file (the PyPI package dashscope carries one).

A rank file names no merges: each token's merge is what byte-pair encoding with the lower ranks leaves of it.
usage: make_qwen_tokenizer.py OUT [qwen.tiktoken]
"""

import base64
import importlib.util
import pathlib
import sys

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIAL = """<|endoftext|> <|im_start|> <|im_end|> <|object_ref_start|> <|object_ref_end|> <|box_start|> <|box_end|>
<|quad_start|> <|quad_end|> <|vision_start|> <|vision_end|> <|vision_pad|> <|image_pad|> <|video_pad|>""".split()
ORDINARY = """<tool_call> </tool_call> <|fim_prefix|> <|fim_middle|> <|fim_suffix|> <|fim_pad|> <|repo_name|>
<|file_sep|>""".split()


def alphabet():
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    codes = {b: chr(b) for b in printable}
    codes.update({b: chr(256 + i) for i, b in enumerate(b for b in range(256) if b not in codes)})
    return codes


def last_merge(token, ranks):
    parts = [bytes([b]) for b in token]
    while len(parts) > 2:
        pairs = [ranks.get(a + b, len(ranks)) for a, b in zip(parts, parts[1:])]
        i = pairs.index(min(pairs))
        if pairs[i] >= ranks[token]:
            break
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return parts


def build(path):
    codes = alphabet()
    spell = lambda token: "".join(codes[b] for b in token)
    ranks = {base64.b64decode(t): int(r) for t, r in (line.split() for line in open(path, "rb") if line.strip())}
    merges = []
    for token in sorted(ranks, key=ranks.get):
        parts = last_merge(token, ranks)
        if len(parts) == 2:
            merges.append((spell(parts[0]), spell(parts[1])))
    tokenizer = Tokenizer(models.BPE(vocab={spell(t): r for t, r in ranks.items()}, merges=merges))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL])
    tokenizer.add_tokens([AddedToken(t, special=False, normalized=False) for t in ORDINARY])
    assert tokenizer.token_to_id("<|image_pad|>") == 151655
    return tokenizer


def main():
    if len(sys.argv) > 2:
        path = sys.argv[2]
    else:
        package = pathlib.Path(importlib.util.find_spec("dashscope").origin).parent
        path = package / "resources" / "qwen.tiktoken"
    build(path).save(sys.argv[1])


if __name__ == "__main__":
    main()
