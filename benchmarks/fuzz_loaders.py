"""Fuzz every loader of files from strangers and count what was tried.

Valid inputs are mutated: bytes flipped, cut, doubled and spliced, numbers and hostile pieces put in. Whatever
comes, a loader must return a value or raise a FalconError; anything else is written down, and the script
fails.

    nice python benchmarks/fuzz_loaders.py --seconds 300 --output benchmarks/results/fuzz.json
"""

from __future__ import annotations

import argparse
import json
import random
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from fuzz_audit import audit_cases
from safetensors.numpy import save

from falcon_unlearn._version import __version__
from falcon_unlearn.config.data import CorpusSettings
from falcon_unlearn.config.evaluation import EvaluationSetSettings
from falcon_unlearn.config.load import load_recipe
from falcon_unlearn.data.sources import load_examples
from falcon_unlearn.errors import FalconError
from falcon_unlearn.evaluation.sets import load_set
from falcon_unlearn.models.safety.config_bounds import read_config
from falcon_unlearn.models.safety.gguf_header import read_gguf_header
from falcon_unlearn.models.safety.inventory import read_index
from falcon_unlearn.models.safety.safetensors_header import read_header
from falcon_unlearn.report.comparison.sources import read_result
from falcon_unlearn.report.records import read_records
from falcon_unlearn.results import DataResult, EvaluationResult, Manifest, SelectionResult
from falcon_unlearn.runs import verify_manifest
from falcon_unlearn.runs.journal import Journal

_SLOW_SECONDS = 5.0
"""An input that takes longer counts as a failure: a loader must not be kept busy by a small file."""
_PIECES = [
    *(mark.encode() for mark in '\0 \r\n " { } [ ] : , \\ \\u0000 \\ud800'.split(" ")),
    *(mark.encode() for mark in "&a *a <<: ../ !x 0x10 1_000 - #".split()),
    *(word.encode() for word in "NaN Infinity -1 1e999 null true 2**63 __class__ (a+)+$ /etc/passwd".split()),
    b"\xff", b"\xef\xbb\xbf", b"\xff\xfe", b"\n", "\u202e".encode(), "\u00e9".encode(), b"\x1b[2J",
    b"9" * 400, b"9" * 5000, b"[" * 3000, b'{"a":' * 2000, b"&a [*a]", b"{a: " * 40,
    b"!!python/object/apply:os.system [id]", b"__import__('os')", b"${oc.env:HOME}", b"_target_: os.system",
    struct.pack("<Q", 2**63), struct.pack("<Q", 2**64 - 1), struct.pack("<I", 9), struct.pack("<I", 2**31),
]  # fmt: skip
"""Pieces that break parsers."""
_VALUES: list[Any] = [
    *(None, True, -1, 0, 2**63, 10**400, 1e308, -0.0, float("nan"), float("inf"), "", [], {}, [[]], [None]),
    *("x" * 10_000, "<script>alert(1)</script>", "\x1b[2J", "\u202e", "\ud800", "../../x", "1", {"": ""}),
]
"""Values that break what uses them."""
_SHARE_OF_VALUES = 0.4
"""Of the mutations of inputs that are one JSON document."""
_RECIPE = """version: 1
method: falcon
seed: 3
model:
  name: pico
  dtype: float32
data:
  forget: [{name: f, path: f.jsonl, columns: {text: body}}]
  retain:
    - {name: r, path: self, weight: 1.5}
  maximum_tokens: 64
train: {steps: 10, learning_rate: 1e-5}
selection: {candidates: [0.2, 0.6]}
evaluation:
  sets: [{name: s, role: forget, kind: choice, path: s.jsonl}]
"""
_ROWS = {
    "text": '{"text": "One two three."}\n{"text": "Vier fünf."}\n',
    "questions": '{"question": "Where?", "answer": "There."}\r\n{"question": "Who?", "answer": "She."}\r\n',
    "messages": '[{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}]',
}
_CHOICE = '{"id": "1", "question": "Q?", "options": ["a", "b"], "answer": 0, "cluster": "c"}\n'
_GENERATION = '{"prompt": "P", "answer": "A", "accept": ["a.c"], "reject": "x"}\n'
_CONFIG = {
    "model_type": "llama",
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "vocab_size": 128,
    "text_config": {"num_experts": 4},
}


@dataclass
class Loader:
    """One loader, its valid inputs and what came of those tried."""

    name: str
    seeds: list[bytes]
    load: Callable[[bytes], Any]
    tried: int = 0
    accepted: int = 0
    refused: int = 0
    slowest: float = 0.0
    failures: list[str] = field(default_factory=list)

    def run(self, seconds: float, draw: random.Random) -> None:
        """Try mutated inputs for a while."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            content = mutate(draw, self.seeds)
            started = time.monotonic()
            try:
                self.load(content)
                self.accepted += 1
            except FalconError:
                self.refused += 1
            except Exception as error:  # noqa: BLE001  # anything else is what the script looks for
                self._note(f"{type(error).__name__}: {error}", content)
            taken = time.monotonic() - started
            self.slowest = max(self.slowest, taken)
            if taken > _SLOW_SECONDS:
                self._note(f"took {taken:.1f} s", content)
            self.tried += 1

    def _note(self, what: str, content: bytes) -> None:
        if len(self.failures) < 20:
            self.failures.append(f"{what[:200]} for {content[:300]!r}")


def mutate(draw: random.Random, seeds: list[bytes]) -> bytes:
    """Change a valid input in one to six places; now and then make one up."""
    if draw.random() < 0.02:
        return draw.randbytes(draw.randrange(200))
    if draw.random() < _SHARE_OF_VALUES:
        replaced = replace_value(draw, draw.choice(seeds))
        if replaced is not None:
            return replaced
    content = bytearray(draw.choice(seeds))
    for _ in range(draw.choice((1, 1, 1, 2, 3, 6))):
        place = draw.randrange(len(content) + 1)
        match draw.randrange(7):
            case 0 if content:
                content[min(place, len(content) - 1)] = draw.randrange(256)
            case 1:
                del content[place : place + draw.randint(1, 8)]
            case 2:
                content[place:place] = draw.choice(_PIECES)
            case 3:
                del content[place:]
            case 4:
                other = draw.choice(seeds)
                content[place:] = other[draw.randrange(len(other)) :]
            case 5:
                content[place:place] = content[place : place + draw.randint(1, 40)]
            case _:
                content[place : place + 4] = draw.choice(_PIECES)[:40]
    return bytes(content)


def replace_value(draw: random.Random, content: bytes) -> bytes | None:
    """Put hostile values into sound JSON, which breaks what parses it less often and what uses it more."""
    try:
        values = json.loads(content)
    except ValueError:
        return None
    for _ in range(draw.choice((1, 1, 2, 4))):
        places = list(_places(values))
        if places:
            holder, key = draw.choice(places)
            holder[key] = deepcopy(draw.choice(_VALUES))
    return json.dumps(values).encode()


def _places(values: Any) -> Iterator[tuple[Any, Any]]:
    """List every place of a value in nested lists and objects."""
    items = (
        values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    )
    for key, value in list(items):
        yield values, key
        yield from _places(value)


def loaders(folder: Path) -> list[Loader]:
    """List every loader with its valid inputs; all files go into `folder`."""

    def file(name: str, read: Callable[[Path], Any]) -> Callable[[bytes], Any]:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)

        def load(content: bytes) -> Any:
            path.write_bytes(content)
            return read(path)

        return load

    def recipe(path: Path) -> Any:
        return load_recipe(path, {}, [], environment={})

    def corpus(path: Path) -> Any:
        return load_examples(CorpusSettings(name="c", path=str(path)))

    def questions(path: Path) -> Any:
        return load_set(EvaluationSetSettings(name="s", role="forget", kind="choice", path=str(path)), seed=0)

    def prompts(path: Path) -> Any:
        return load_set(
            EvaluationSetSettings(name="s", role="forget", kind="generation", path=str(path)), seed=0
        )

    def overrides(content: bytes) -> Any:
        argument = "train.steps=" + content.decode("utf-8", "replace")
        return load_recipe(None, {"model.name": "m"}, [argument], environment={})

    arrays = {"a.weight": np.zeros((3, 4), np.float32), "b": np.ones(2, np.int64)}
    index = {
        "metadata": {"total_size": 8},
        "weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"},
    }
    records = _records()
    run = folder / "run"
    for name, content in records.items():
        file(f"run/falcon/{name}", lambda path: None)(content)
    result = [
        Loader(f"result file {name}", [content], _record_loader(run, name, content, read_records))
        for name, content in records.items()
        if name != "manifest.json"
    ]
    manifest = records["manifest.json"]
    return [
        Loader("recipe", [_RECIPE.encode()], file("recipe.yaml", recipe)),
        Loader("--set argument", [b"10", b"[1, 2]", b"{a: 1}"], overrides),
        Loader("corpus JSONL", [text.encode() for text in _ROWS.values()], file("c.jsonl", corpus)),
        Loader("corpus text", [b"One.\n\nTwo.\n"], file("c.txt", corpus)),
        Loader("choice set", [_CHOICE.encode()], file("s.jsonl", questions)),
        Loader("generation set", [_GENERATION.encode()], file("g.jsonl", prompts)),
        Loader("safetensors header", [save(arrays)], file("w.safetensors", read_header)),
        Loader("shard index", [json.dumps(index).encode()], file("model.safetensors.index.json", read_index)),
        Loader("config.json", [json.dumps(_CONFIG).encode()], file("config.json", _config)),
        Loader("GGUF header", [gguf_seed()], file("w.gguf", read_gguf_header)),
        Loader("manifest", [manifest], _record_loader(run, "manifest.json", manifest, verify_manifest)),
        Loader("journal", [_journal_seed(folder)], file("journal.jsonl", lambda path: Journal(path).read())),
        Loader("compare source", [_bench_seed()], file("x.bench.json", read_result)),
        *result,
        *(Loader(*case) for case in audit_cases(folder)),
    ]


def _config(path: Path) -> Any:
    return read_config(path.parent, allow_code=True, num_tensors=20)


def _record_loader(run: Path, name: str, good: bytes, read: Callable[[Path], Any]) -> Callable[[bytes], Any]:
    path = run / "falcon" / name

    def load(content: bytes) -> Any:
        path.write_bytes(content)
        try:
            return read(run)
        finally:
            path.write_bytes(good)

    return load


def _records() -> dict[str, bytes]:
    """Make the smallest records that the report reads."""
    from falcon_unlearn.results import EnvironmentResult, Metric, SetResult, TrainingResult

    metric = Metric(
        name="accuracy_text",
        value=0.5,
        low=0.4,
        high=0.6,
        interval="wilson",
        unit="share",
        desired="lower",
        num_items=2,
    )
    one = SetResult(name="s", role="forget", kind="choice", num_items=2, metrics=[metric])
    values = {
        "data.json": DataResult(corpora=[]),
        "selection.json": SelectionResult(
            estimator="fixed", unit="none", layer=1, best_layer=1, fixed=True, rule="fixed"
        ),
        "training.json": TrainingResult(
            method="falcon", status="completed", steps_planned=1, steps_done=1, kept_step=1, window=(0, 1),
            trained=["a"], trained_parameters=1, total_parameters=2, learning_rate=1e-3,
            compute_dtype="float32", history=[{"step": 0.0, "forget_loss": 1.0}], domains=["f"], changes=[],
            seconds_cache=0.0, seconds_train=0.0, cached_tokens=1, cache_bytes=1,
            peak_memory_bytes=1,
        ),
        "environment.json": EnvironmentResult(
            python="3", platform="x", packages={}, processor="p", cores=1, threads=1, memory_bytes=1,
            device="cpu", started="2026-01-01T00:00:00Z",
        ),
        "evaluation.before.json": EvaluationResult(label="before", model="m", sets=[one], seconds=0.0),
        "manifest.json": Manifest(
            package_version=__version__, fingerprint="0", base_model="m", base_weights_sha256={}, files=[],
            command="", seconds={},
        ),
    }  # fmt: skip
    plain = {name: record.model_dump_json().encode() for name, record in values.items()}
    return {**plain, "recipe.resolved.yaml": _RECIPE.encode()}


def _journal_seed(folder: Path) -> bytes:
    path = folder / "seed.jsonl"
    journal = Journal(path)
    journal.append("a", {"value": 1.5})
    journal.append("b", {"value": [1, 2]})
    return path.read_bytes()


def _bench_seed() -> bytes:
    from falcon_unlearn.results_bench import BenchMetric, BenchResult

    metric = BenchMetric(name="m", value=0.5, low=0.4, high=None, num_items=3)
    values = {"benchmark": "tofu", "setting": {"split": "x"}, "role": "unlearned", "label": "l", "model": "m"}
    result = BenchResult.model_validate(
        values | {"metrics": [metric], "forget_axis": "m", "utility_axis": "m"}
    )
    return result.model_dump_json().encode()


def gguf_seed() -> bytes:
    """Write a GGUF file of two tensors by hand."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    pairs = [
        text("general.architecture") + struct.pack("<I", 8) + text("llama"),
        text("llama.block_count") + struct.pack("<II", 4, 1),
        text("tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, 2) + text("a") + text("b"),
    ]
    tensors = [text("t") + struct.pack("<IQIQ", 1, 4, 0, 0), text("u") + struct.pack("<IQIQ", 1, 4, 0, 32)]
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(pairs)) + b"".join(pairs) + b"".join(tensors)
    return head + bytes(-len(head) % 32) + bytes(64)


def main() -> int:
    """Fuzz for the time given and print or write what was tried."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        chosen = loaders(Path(name))
        for position, loader in enumerate(chosen):
            loader.run(arguments.seconds / len(chosen), random.Random(f"{arguments.seed}:{position}"))
            print(f"{loader.name}: {loader.tried} inputs, {len(loader.failures)} failures", file=sys.stderr)
    rows = [
        {
            "loader": loader.name,
            "inputs": loader.tried,
            "accepted": loader.accepted,
            "refused": loader.refused,
            "failures": loader.failures,
            "slowest_seconds": round(loader.slowest, 3),
        }
        for loader in chosen
    ]
    total = {
        "package_version": __version__,
        "command": "python benchmarks/fuzz_loaders.py "
        f"--seconds {arguments.seconds:g} --seed {arguments.seed}",
        "inputs": sum(loader.tried for loader in chosen),
        "failures": sum(len(loader.failures) for loader in chosen),
        "loaders": rows,
    }
    text = json.dumps(total, indent=2) + "\n"
    if arguments.output is None:
        print(text)
    else:
        arguments.output.write_text(text, encoding="utf-8")
    return 1 if total["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
