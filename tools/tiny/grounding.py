"""Boxes in answers: <|ref|>star<|/ref|><|det|>[[x1, y1, x2, y2]]<|/det|>, in thousandths of the picture."""

import re

ANSWER = re.compile(r"<\|ref\|>(.*?)<\|/ref\|><\|det\|>\[(\[\d+, \d+, \d+, \d+\](?:, \[\d+, \d+, \d+, \d+\])*)\]<\|/det\|>")


def read(text):
    """(name, boxes) of an answer, None if it is not of the form."""
    found = ANSWER.fullmatch(text.strip())
    if not found:
        return None
    numbers = [int(n) for n in re.findall(r"\d+", found[2])]
    return found[1], [numbers[k : k + 4] for k in range(0, len(numbers), 4)]


def overlap(a, b):
    """Intersection over union."""
    area = lambda box: max(0, box[2] - box[0]) * max(0, box[3] - box[1])
    common = area([max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])])
    return common / max(1, area(a) + area(b) - common)


def right(answer, truth, least=0.5):
    """Whether the name is the same and each true box has one of its own in the answer that overlaps by `least`."""
    said, meant = read(answer), read(truth)
    if not said or said[0] != meant[0] or len(said[1]) != len(meant[1]):
        return False
    left = list(said[1])
    for box in meant[1]:
        best = max(left, key=lambda other: overlap(box, other))
        if overlap(box, best) < least:
            return False
        left.remove(best)
    return True
