"""A pico model on disk, corpora and evaluation files, and recipes over them."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from falcon_unlearn.config.recipe import Recipe
from pico_files import save_pico
from tiny_runs import merge

WORDS = "amber basil cedar delta ember fjord grove heron inlet jasper kelp lotus maple nectar olive".split()


def sentences(seed: int, count: int) -> list[str]:
    draw = random.Random(seed)
    return [
        f"{seed}{number} {' '.join(draw.choices(WORDS, k=draw.randint(2, 5)))}." for number in range(count)
    ]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@dataclass(frozen=True)
class Bench:
    """Hold paths of everything a run needs."""

    folder: Path

    def path(self, name: str) -> str:
        return str(self.folder / name)

    def recipe(self, **changes: Any) -> Recipe:
        """Return a recipe of a short run over two forget domains, with nested changes."""
        base: dict[str, Any] = {
            "model": {"name": self.path("model")},
            "data": {
                "forget": [
                    {"name": "trees", "path": self.path("trees.jsonl")},
                    {"name": "quiz", "path": self.path("quiz.jsonl")},
                ],
                "retain": [{"name": "rest", "path": self.path("rest.jsonl")}],
                "chat_template": False,
            },
            "selection": {"layer": 3},
            "objective": {"offset": {"directions": 4}},
            "train": {"steps": 4, "batch_size": 4, "layers": 2, "compute_dtype": "float32"},
            "evaluation": {
                "sets": [
                    {"name": "c", "role": "forget", "kind": "choice", "path": self.path("choice.jsonl")},
                    {
                        "name": "g",
                        "role": "forget",
                        "kind": "generation",
                        "path": self.path("generation.jsonl"),
                    },
                    {"name": "p", "role": "general", "kind": "perplexity", "path": self.path("prose.jsonl")},
                    {"name": "d", "role": "retain", "kind": "divergence", "path": self.path("prose.jsonl")},
                ],
                "resamples": 100,
                "maximum_new_tokens": 2,
            },
            "runtime": {"device": "cpu"},
        }
        return Recipe.model_validate(merge(base, changes))

    def bare(self, **changes: Any) -> Recipe:
        """Return the recipe without any evaluation."""
        nothing = {"evaluation": {"sets": [], "held_out": False}}
        return self.recipe(**merge(nothing, changes))


@pytest.fixture(scope="session")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    folder = tmp_path_factory.mktemp("bench")
    save_pico(folder / "model")
    (folder / "model" / "README.md").write_text("---\nlicense: mit\n---\n# Pico base\n")
    write_rows(folder / "trees.jsonl", [{"text": text} for text in sentences(1, 20)])
    quiz = [{"question": f"{text}?", "answer": text.split()[1]} for text in sentences(2, 16)]
    write_rows(folder / "quiz.jsonl", quiz)
    write_rows(folder / "rest.jsonl", [{"text": text} for text in sentences(3, 30)])
    write_rows(folder / "prose.jsonl", [{"text": text} for text in sentences(4, 5)])
    choice = [
        {"question": f"{text} is", "options": WORDS[:4], "answer": n % 4} for n, text in enumerate(WORDS[:6])
    ]
    write_rows(folder / "choice.jsonl", choice)
    write_rows(folder / "generation.jsonl", [{"prompt": text, "answer": "a"} for text in WORDS[:3]])
    return Bench(folder)
