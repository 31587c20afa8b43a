from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from falcon_unlearn.errors import UsageError
from falcon_unlearn.report import render_report

Write = Callable[[dict[str, Any]], Path]

HEADINGS = [
    "What was asked",
    "Which layer, and why",
    "Training",
    "Before and after",
    "Sample generations",
    "Changed tensors",
    "Cost",
    "Limits",
    "How to repeat it",
]
HOSTILE = (
    "<script>alert(1)</script>\x1b[31mred\x1b[0m\x00\u202e=cmd|' /C calc'!A0 "
    '"><img src=x onerror=y>{{ 7*7 }}'
)


class _Reader(HTMLParser):
    """Collect what a browser would see: tags with attributes, and the text of headings and paragraphs."""

    void = frozenset({"meta", "link", "br", "img", "input", "hr"})

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.headings: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.void:
            self.open.append(tag)
        if tag == "h2":
            self.headings.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data
        if "h2" in self.open:
            self.headings[-1] += data


def read(page: str) -> _Reader:
    reader = _Reader()
    reader.feed(page)
    reader.close()
    assert reader.open == []
    return reader


def drawings(page: str) -> list[ElementTree.Element]:
    return [ElementTree.fromstring(svg) for svg in re.findall(r"<svg .*?</svg>", page, re.DOTALL)]


def test_whole_run_has_every_section_and_number(run: dict[str, Any], write: Write) -> None:
    path = render_report(write(run))
    assert path.name == "report.html"
    reader = read(path.read_text(encoding="utf-8"))
    assert reader.headings[1:] == HEADINGS
    assert "no longer answered better than by guessing" in reader.headings[0]
    for expected in (
        "96.2% to 26.2%",
        "suppressed at best",
        "3 of 272 tensors",
        "Fall in the trial",
        "30 steps at 4 times the learning rate, measured on 48 forget texts; a layer needs 40%",
        "0.021",
        "c0ffee",
        "Fe. It is",
    ):
        assert expected in reader.text
    assert [path.name for path in path.parent.iterdir() if path.suffix == ".tmp"] == []


def test_page_refers_to_nothing_outside(run: dict[str, Any], write: Write) -> None:
    page = render_report(write(run)).read_text(encoding="utf-8")
    for tag, attributes in read(page).tags:
        assert tag not in {"script", "img", "iframe", "object", "embed", "base", "form"}
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href", "xlink:href", "action", "srcset"):
            assert (attributes.get(name) or "#").startswith(("#", "data:,"))
    assert "@import" not in page
    assert "url(" not in page
    policies = [a["content"] for t, a in read(page).tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policies == ["default-src 'none'; style-src 'unsafe-inline'; img-src data:"]


def _poison(value: Any) -> Any:
    """Put the hostile text wherever the records allow any text."""
    fixed = {"role", "kind", "desired", "unit", "interval", "label", "status", "metric", "id", "cluster"}
    if isinstance(value, dict):
        return {name: part if name in fixed else _poison(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_poison(part) for part in value]
    return f"{value} {HOSTILE}" if isinstance(value, str) else value


def test_hostile_text_stays_text_everywhere(run: dict[str, Any], write: Write) -> None:
    clean_tags = Counter(tag for tag, _ in read(render_report(write(run)).read_text(encoding="utf-8")).tags)
    recipe = run.pop("recipe.resolved.yaml")
    poisoned = {name: _poison(content) for name, content in run.items()}
    for name in ("evaluation.before.json", "evaluation.after.json"):
        for one in poisoned[name]["sets"]:
            for metric in one["metrics"]:
                metric["name"] = metric["name"].split(" ")[0]  # the names of metrics are ours
    recipe["model"]["name"] = f"evil/{HOSTILE}"
    page = render_report(write({**poisoned, "recipe.resolved.yaml": recipe})).read_text(encoding="utf-8")
    reader = read(page)
    assert Counter(tag for tag, _ in reader.tags) == clean_tags
    assert "<script" not in page
    assert "<script>alert(1)</script>red=cmd" in reader.text
    assert "{{ 7*7 }}" in reader.text
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", page)
    assert "[31m" not in page.replace(r"\e[31m", "")  # the recipe is shown as YAML, which spells it out
    drawings(page)


def test_charts_are_well_formed_named_and_finite(run: dict[str, Any], write: Write) -> None:
    page = render_report(write(run)).read_text(encoding="utf-8")
    charts = [svg for svg in drawings(page) if svg.get("role") == "img"]
    assert len(charts) == 2 + 6 + 2 + 1
    for svg in charts:
        ids = {part.get("id") for part in svg if part.tag in {"title", "desc"}}
        assert set((svg.get("aria-labelledby") or "").split()) == ids
        assert all(part.text for part in svg if part.tag in {"title", "desc"})
    assert "nan" not in re.sub(r">[^<]*<", "><", page).lower()
    identifiers = re.findall(r' id="([^"]+)"', page)
    assert len(identifiers) == len(set(identifiers))


def _box(part: ElementTree.Element) -> tuple[float, float, float, float]:
    width = 6.2 * len(part.text or "")
    left = (
        float(part.get("x", "0"))
        - {"start": 0.0, "middle": 0.5, "end": 1.0}[part.get("text-anchor", "start")] * width
    )
    baseline = float(part.get("y", "0"))
    return left, left + width, baseline - 9, baseline + 2


@pytest.mark.parametrize(("chosen", "best"), [(4, 6), (4, 5), (5, 4), (18, 17), (6, 6)])
def test_labels_do_not_overlap(run: dict[str, Any], write: Write, chosen: int, best: int) -> None:
    run["selection.json"] |= {"layer": chosen, "best_layer": best}
    page = render_report(write(run)).read_text(encoding="utf-8")
    for svg in drawings(page):
        width = float((svg.get("viewBox") or "0 0 0 0").split()[2])
        boxes = [(_box(part), part.text) for part in svg.iter("text")]
        for index, (one, words) in enumerate(boxes):
            assert one[0] >= -2, words
            assert one[1] <= width + 6, words
            for other, others in boxes[index + 1 :]:
                apart = one[1] <= other[0] or other[1] <= one[0] or one[3] <= other[2] or other[3] <= one[2]
                assert apart, (words, others)


@pytest.mark.parametrize("missing", [["before"], ["after"], ["before", "after"]])
def test_missing_evaluation_is_said(run: dict[str, Any], write: Write, missing: list[str]) -> None:
    for name in missing:
        del run[f"evaluation.{name}.json"]
    reader = read(render_report(write(run)).read_text(encoding="utf-8"))
    assert reader.headings[1:] == HEADINGS
    assert reader.headings[0].startswith("Not measured")
    assert "no evidence of any effect" in reader.text


def test_run_without_manifest_still_says_how_to_repeat(run: dict[str, Any], write: Write) -> None:
    del run["manifest.json"]
    text = read(render_report(write(run)).read_text(encoding="utf-8")).text
    assert "--recipe falcon/recipe.resolved.yaml" in text
    assert "selection, forward" in text


def test_fixed_layer_draws_no_curve(run: dict[str, Any], write: Write) -> None:
    run["selection.json"] |= {"fixed": True, "layers": [], "explanation": "", "unit": "none", "samples": {}}
    page = render_report(write(run)).read_text(encoding="utf-8")
    assert "The user fixed layer 4" in read(page).text
    assert "Heat strip" not in page


def test_numbers_that_are_not_finite_are_shown_as_missing(run: dict[str, Any], write: Write) -> None:
    for row in run["training.json"]["history"][::2]:
        row |= {"forget_loss": math.nan, "retain_norm": math.inf, "sink_norm": None}
    run["selection.json"]["layers"][5] |= {"value": None, "low": None, "high": math.nan}
    perplexity = run["evaluation.after.json"]["sets"][-1]["metrics"][0]
    perplexity |= {"value": math.inf, "low": None, "high": None}
    page = render_report(write(run)).read_text(encoding="utf-8")
    reader = read(page)
    assert "infinite" in reader.text
    assert "kept sets got worse" in reader.headings[0]
    drawings(page)


def test_empty_history_and_many_tensors(run: dict[str, Any], write: Write) -> None:
    history = [{**row, "step": step} for step, row in enumerate(run["training.json"]["history"] * 20, 1)]
    run["training.json"]["history"] = history
    for row in history:
        row |= {f"cosine:model.layers.{i}.mlp.up_proj.weight": 0.1 for i in range(9)}
    page = render_report(write(run)).read_text(encoding="utf-8")
    assert "Strength of the conflict" in page
    run["training.json"]["history"] = []
    assert "No step was recorded" in render_report(write(run)).read_text(encoding="utf-8")


def test_local_paths_are_not_published(run: dict[str, Any], write: Write) -> None:
    run["recipe.resolved.yaml"]["model"]["name"] = "/home/mallory/private/model"
    run["recipe.resolved.yaml"]["data"]["forget"][0]["path"] = "/home/mallory/private/secret.jsonl"
    del run["manifest.json"]
    page = render_report(write(run)).read_text(encoding="utf-8")
    assert "secret.jsonl" in page
    assert "mallory" not in page


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("training.json", None, "is not the output folder of a run"),
        ("training.json", "{", "falcon/training.json is damaged"),
        ("data.json", '{"corpora": 3}', "falcon/data.json is damaged: corpora"),
        (
            "recipe.resolved.yaml",
            "!!python/object/apply:os.getcwd []",
            "falcon/recipe.resolved.yaml is damaged",
        ),
    ],
)
def test_bad_folder_is_refused_and_nothing_written(
    run: dict[str, Any], write: Write, name: str, content: str | None, words: str
) -> None:
    folder = write(run)
    target = folder / "falcon" / name
    if content is None:
        target.unlink()
    else:
        target.write_text(content, encoding="utf-8")
    with pytest.raises(UsageError, match=re.escape(words)):
        render_report(folder)
    assert not (folder / "falcon" / "report.html").exists()


def test_rendering_needs_no_torch(run: dict[str, Any], write: Write, tmp_path: Path) -> None:
    folder = write(run)
    program = (
        "import sys, json, pathlib\n"
        "for name in ('torch', 'transformers', 'numpy'): sys.modules[name] = None\n"
        "from falcon_unlearn.report import render_report, model_card\n"
        "path = render_report(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]))\n"
        "print(json.dumps([path.stat().st_size, len(model_card(pathlib.Path(sys.argv[1])))]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder), str(tmp_path / "elsewhere.html")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert min(json.loads(done.stdout)) > 1000


def _luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _contrast(one: str, other: str) -> float:
    high, low = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_colours_have_contrast_in_both_themes(run: dict[str, Any], write: Write) -> None:
    page = render_report(write(run)).read_text(encoding="utf-8")
    themes = [
        dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block))
        for block in re.findall(r":root \{(.*?)\}", page, re.DOTALL)
    ]
    assert len(themes) == 3
    for theme in themes:
        for name in ("ink", "muted", "accent", *[f"series-{i}" for i in range(6)]):
            assert _contrast(theme[name], theme["paper"]) >= 4.5, name
        for name in ("ink", "muted"):
            assert _contrast(theme[name], theme["panel"]) >= 4.5, name
        for level in ("good", "mixed", "bad", "unknown"):
            assert _contrast(theme[level], theme[f"{level}-paper"]) >= 4.5, level
