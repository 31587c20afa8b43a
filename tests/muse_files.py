"""Invented articles, samples and questions in the layout of MUSE-News."""

from __future__ import annotations

import json
import random

WORDS = "amber bridge cedar delta ember fjord grove harbor inlet juniper kiln lagoon meadow north".split()


def invented_article(seed, num_lines=3):
    chance = random.Random(seed)
    lines = [
        " ".join(f"{chance.choice(WORDS)}{chance.randrange(100)}" for _ in range(9)) for _ in range(num_lines)
    ]
    return "\n\n".join(line.capitalize() + "." for line in lines)


def invented_samples(articles):
    """One sample within the first article, one across the second and third, one that splits a word."""
    joined = "\n\n".join(articles)
    second, third = joined.index(articles[1]), joined.index(articles[2])
    space = joined.index(" ", third + 40)
    return [
        {
            "prompt": articles[0][:60].rsplit(" ", 1)[0],
            "gt": articles[0][:60].rsplit(" ", 1)[1] + articles[0][60:90],
        },
        {"prompt": joined[second + 30 : space], "gt": joined[space + 1 : space + 50]},
        {"prompt": articles[3][:33], "gt": articles[3][33:80]},
    ]


def questions(tag, count):
    return [{"question": f"Who saw the {tag} {k}?", "answer": f"{tag} man {k}"} for k in range(count)]


def write_json(folder, name, rows):
    path = folder / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows), encoding="utf-8")


def write_news(folder, forget, other):
    """Write a folder like the one of MUSE-News, without the official retain and holdout texts."""
    write_json(folder, "raw/forget", forget)
    write_json(folder, "raw/other_news", other)
    write_json(folder, "verbmem/forget", invented_samples(forget))
    for side in ("forget", "retain2"):
        write_json(folder, f"knowmem/{side}_qa", questions(side, 3))
        write_json(folder, f"knowmem/{side}_qa_icl", questions(f"shot {side}", 2))
    for side in ("forget", "holdout", "retain2"):
        write_json(folder, f"privleak/{side}", [invented_article(f"{side} text {k}") for k in range(4)])
    return folder
