"""Writes src/text/unicode_tables.cpp: the Unicode properties that the Hugging Face tokenizers library sees.

Each of its parts carries its own Unicode version (regexes, NFC and Digits differ by years), so the tables are asked of
the library itself, one code point at a time, and token ids then do not depend on the system's Unicode libraries.
usage: make_unicode_tables.py > src/text/unicode_tables.cpp
"""

import tokenizers
from tokenizers import Regex, normalizers, pre_tokenizers

CATEGORIES = "Lu Ll Lt Lm Lo Mn Mc Me Nd Nl No Pc Pd Ps Pe Pi Pf Po Sm Sc Sk So Zs Zl Zp Cc Cf Cs Co Cn".split()
POINTS = [c for c in range(0x110000) if not 0xD800 <= c < 0xE000]
EVERYTHING = "".join(map(chr, POINTS))


def matching(pattern):
    split = pre_tokenizers.Split(Regex(pattern), "removed", invert=True)
    return {ord(c) for piece, _ in split.pre_tokenize_str(EVERYTHING) for c in piece}


def normalized(normalizer, strings):
    result = normalizer.normalize_str("\n".join(strings)).split("\n")
    assert len(result) == len(strings)
    return result


def ranges(points):
    out = []
    for c in sorted(points):
        if out and out[-1][1] == c - 1:
            out[-1][1] = c
        else:
            out.append([c, c])
    return out


def categories():
    category = {c: "Cs" for c in range(0xD800, 0xE000)}
    for name in CATEGORIES:
        if name != "Cs":
            for c in matching(r"\p{%s}" % name):
                assert c not in category, hex(c)
                category[c] = name
    assert len(category) == 0x110000
    runs = []
    for c in range(0x110000):
        if not runs or runs[-1][1] != category[c]:
            runs.append((c, category[c]))
    return runs


def composition():
    """Code points that NFC may change, reorder, or join with what stands before them; and those that it may join,
    whole or decomposed, with what stands behind them."""
    nfc, nfd = normalizers.NFC(), normalizers.NFD()
    points = [c for c in POINTS if c != 10]
    plain = [chr(c) for c in points]
    active = {c for c, s, n in zip(points, plain, normalized(nfc, plain)) if s != n}
    decomposed = normalized(nfd, plain)
    # Canonical combining class between 1 and 229, or above 1: swapped with class 230 before or class 1 after.
    for before, after in (("\u0301", ""), ("", "\u0334")):
        swapped = normalized(nfd, [before + s + after for s in plain])
        active |= {c for c, s, n, d in zip(points, plain, swapped, decomposed) if d == s and n != before + s + after}
    active |= {c for c, d in zip(points, decomposed) if ord(d[0]) in active}
    active |= {ord(c) for d in decomposed for c in d[1:]}
    pairs = {n: d[:-1] for n, d in zip(normalized(nfc, plain), decomposed) if n != d and len(n) == 1}
    heads = {ord(c) for c in [*pairs, *normalized(nfc, list(pairs.values()))] if len(c) == 1}
    return ranges(active), ranges(heads - active)


def digits_beyond_n():
    pieces = pre_tokenizers.Digits(individual_digits=False).pre_tokenize_str("a".join(EVERYTHING.replace("a", "")))
    digits = {ord(p) for p, _ in pieces if "a" not in p}
    numbers = matching(r"\p{N}")
    assert numbers <= digits
    return ranges(digits - numbers)


def rows(items, per_line):
    return "\n".join("    " + " ".join(items[i : i + per_line]) for i in range(0, len(items), per_line))


def main():
    spaces = matching(r"\s")
    runs = categories()
    expected = {c for c in range(9, 14)} | {0x85}
    for (start, name), (end, _) in zip(runs, runs[1:]):
        if name[0] == "Z":
            expected |= set(range(start, end))
    assert spaces == expected
    print(f"// Written by tools/reference/make_unicode_tables.py from tokenizers {tokenizers.__version__}; do not edit.")
    print('#include "text/unicode.h"\n\nnamespace saccade::text {\n')
    print("// First code point of a run << 5 | Category.\nconst uint32_t kCategoryRuns[] = {")
    print(rows([f"0x{c << 5 | CATEGORIES.index(n):07x}," for c, n in runs], 10))
    print("};\nconst size_t kCategoryRunCount = sizeof(kCategoryRuns) / sizeof(kCategoryRuns[0]);\n")
    active, heads = composition()
    for name, table in (("kNfcActive", active), ("kNfcHeads", heads), ("kDigitsBeyondN", digits_beyond_n())):
        print(f"const CodeRange {name}[] = {{")
        print(rows(["{0x%04x, 0x%04x}," % (a, b) for a, b in table], 5))
        print(f"}};\nconst size_t {name}Count = sizeof({name}) / sizeof({name}[0]);\n")
    print("}  // namespace saccade::text")


if __name__ == "__main__":
    main()
