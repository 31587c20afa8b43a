"""Structure and safety of the page, the pictures and the folder."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from falcon_unlearn.errors import UsageError
from falcon_unlearn.report.comparison import Comparison, compare_results, render_page, write_comparison
from falcon_unlearn.report.comparison.picture import draw
from falcon_unlearn.results_bench import Gate

HOSTILE = (
    "<script>alert(1)</script>\x1b[31mred\x1b[0m\x00\u202e=cmd|' /C calc'!A0 "
    '"><img src=x onerror=y>{{ 7*7 }}</style></svg>'
)
SVG = "{http://www.w3.org/2000/svg}"


class Reader(HTMLParser):
    """Collect what a browser would see."""

    void = frozenset({"meta", "link", "br", "img", "input", "hr"})

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""

    def handle_starttag(self, tag, attrs) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.void:
            self.open.append(tag)

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data) -> None:
        if "style" not in self.open:
            self.text += data


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    reader.close()
    assert reader.open == []
    return reader


def classes(svg: ElementTree.Element, tag: str) -> Counter[str]:
    return Counter(part.get("class", "") for part in svg.iter(tag))


def drawings(page: str) -> list[ElementTree.Element]:
    return [ElementTree.fromstring(svg) for svg in re.findall(r"<svg .*?</svg>", page, re.DOTALL)]


@pytest.fixture
def comparison(make, save, references) -> Comparison:
    gate = Gate(name="G2", passed=False, value=0.3, condition="at most 0.25")
    return compare_results(
        [
            save(
                *references,
                make("deep", 0.01, 0.58, gates=[gate]),
                make("right", 0.12, 0.59, seed=0),
                make("right", 0.13, 0.60, seed=1),
                make("shallow", 0.40, 0.57),
                make("gone", None, 0.57),
                make("lone", 0.40, 0.57, benchmark="muse"),
            )
        ]
    )


def test_picture_shows_methods_references_and_zones(comparison) -> None:
    picture = draw(comparison.groups[0], 0.02)
    svg = ElementTree.fromstring(str(picture.inline("x")))
    circles = classes(svg, "circle")
    # The legend adds one of each kind.
    assert circles == {"dot series-1": 1 + 1, "hollow series-1": 2 + 1}
    marks = classes(svg, "path")
    assert {f"model-mark {role}": 1 for role in ("base", "target", "retain", "retain_replicate")} == {
        name: count for name, count in marks.items() if name.startswith("model-mark ")
    }
    rects = classes(svg, "rect")
    assert (rects["over-zone"], rects["equal-zone"]) == (1, 1)
    lines = classes(svg, "line")
    assert (lines["reference retain-line"], lines["reference target-line"]) == (1, 1)
    assert lines["whisker model"] == 2 * 4
    assert lines["whisker method"] == 2 * 3 + 1
    words = [part.text or "" for part in svg.iter("text")]
    assert {"deep", "right", "shallow", "retain A", "retain B", "target", "base"} <= set(words)
    assert any(text.startswith("over-forgetting") for text in words)
    assert "equal utility" in words
    assert "gone" not in words


def _circles(svg: ElementTree.Element) -> dict[str, ElementTree.Element]:
    return {(circle[0].text or "").split(" (")[0]: circle for circle in svg.iter("circle") if len(circle)}


def test_points_lie_where_their_numbers_are(comparison) -> None:
    svg = ElementTree.fromstring(str(draw(comparison.groups[0], 0.02).inline("x")))
    circles = _circles(svg)
    assert circles["right"].get("class") == "dot series-1"
    assert circles["deep"].get("class") == circles["shallow"].get("class") == "hollow series-1"
    x = {name: float(circle.get("cx")) for name, circle in circles.items()}
    y = {name: float(circle.get("cy")) for name, circle in circles.items()}
    assert (x["shallow"] - x["deep"]) / (x["right"] - x["deep"]) == pytest.approx(0.39 / 0.115, rel=1e-3)
    assert y["right"] < y["deep"] < y["shallow"]  # upwards is better
    zone = next(part for part in svg.iter("rect") if part.get("class") == "over-zone")
    left, width = float(zone.get("x")), float(zone.get("width"))
    assert left < x["deep"] < left + width < x["right"]
    line = next(part for part in svg.iter("line") if part.get("class") == "reference retain-line")
    assert left + width < float(line.get("x1")) < x["right"]


def test_group_without_models_to_compare_to_has_no_zones(comparison) -> None:
    svg = ElementTree.fromstring(str(draw(comparison.groups[1], 0.02).inline("x")))
    assert classes(svg, "rect") == {}
    assert not any("reference" in name for name in classes(svg, "line"))
    assert classes(svg, "circle") == {"dot series-1": 2, "hollow series-1": 1}


def test_group_without_numbers_is_said_not_drawn(make, save) -> None:
    comparison = compare_results([save(make("A", None, 0.5), make("B", 0.3, None))])
    assert draw(comparison.groups[0], 0.02) is None
    assert "Not drawn" in read(render_page(comparison)).text


@pytest.mark.parametrize(
    ("forget", "utility"),
    [(0.0, 0.0), (1e-12, 1e12), (-1e100, 1e100), (1e100, 1e100 * (1 - 1e-15)), (5e-324, 1.0)],
)
def test_extreme_numbers_are_drawn(make, save, forget, utility) -> None:
    folder = save(
        make("A", forget, utility, half=-1),
        make("retain", 0.1, 0.5, role="retain"),
        make("target", 0.7, 0.5, role="target"),
    )
    page = render_page(compare_results([folder]))
    assert drawings(page)
    assert "nan" not in re.sub(r">[^<]*<", "><", page).lower()


def test_zone_lies_on_the_other_side_where_forgetting_raises_the_metric(make, save) -> None:
    folder = save(
        make("target", 5.0, 0.6, role="target", desired="higher"),
        make("retain", 50.0, 0.6, role="retain", desired="higher"),
        make("deep", 90.0, 0.6, desired="higher"),
    )
    svg = ElementTree.fromstring(str(draw(compare_results([folder]).groups[0], 0.02).inline("x")))
    zone = next(part for part in svg.iter("rect") if part.get("class") == "over-zone")
    circle = _circles(svg)["deep"]
    left, width = float(zone.get("x")), float(zone.get("width"))
    assert left < float(circle.get("cx")) < left + width
    assert left + width == pytest.approx(960 - 24)


def test_page_holds_tables_outcome_gates_and_notes(comparison) -> None:
    page = render_page(comparison)
    reader = read(page)
    tags = Counter(tag for tag, _ in reader.tags)
    assert (tags["section"], tags["table"], tags["h1"], tags["h2"]) == (2, 2, 1, 2)
    rows = sum(len(group.rows) for group in comparison.groups)
    assert tags["tr"] == rows + 2
    for expected in (
        "Failed gates",
        "deep: G2 is 0.3, needed: at most 0.25",
        "over-forgetting",
        "On the Pareto front",
        "At equal utility",
        "no retain model in this group",
        "0.120 to 0.130",
        "[0.670, 0.730]",
        "n/a",
    ):
        assert expected in reader.text
    identifiers = re.findall(r' id="([^"]+)"', page)
    assert len(identifiers) == len(set(identifiers))
    for svg in drawings(page):
        ids = {part.get("id") for part in svg if part.tag in {"title", "desc"}}
        assert set((svg.get("aria-labelledby") or "").split()) == ids


def test_page_refers_to_nothing_outside(comparison) -> None:
    page = render_page(comparison)
    for tag, attributes in read(page).tags:
        assert tag not in {"script", "img", "iframe", "object", "embed", "base", "form"}
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href", "xlink:href", "action", "srcset"):
            assert (attributes.get(name) or "#").startswith(("#", "data:,"))
    assert "@import" not in page
    assert "url(" not in page
    policies = [a["content"] for _, a in read(page).tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policies == ["default-src 'none'; style-src 'unsafe-inline'; img-src data:"]


def rows_with(make, make_metric, text: str) -> list:
    gate = Gate(name=f"G{text}", passed=False, value=0.3, condition=f"low{text}")
    common = {
        "setting": {f"split{text}": f"forget{text}"},
        "forget_axis": f"extraction{text}",
        "utility_axis": f"utility{text}",
    }

    def one(label, forget, utility, **fields):
        made = make(f"{label}{text}", forget, utility, **common, **fields)
        renamed = [metric.model_copy(update={"name": f"{metric.name}{text}"}) for metric in made.metrics]
        return made.model_copy(update={"metrics": renamed})

    return [
        one("target", 0.7, 0.6, role="target"),
        one("retain", 0.1, 0.6, role="retain"),
        one(
            "NPO",
            0.01,
            0.6,
            gates=[gate],
            notes=[f"note{text}"],
            method=f"method{text}",
            model=f"model{text}",
            hardware=f"machine{text}",
            seconds={f"train{text}": 1.0},
            data={f"file{text}": f"hash{text}"},
            recipe={f"lr{text}": f"1{text}", "trials": text},
            versions={f"torch{text}": f"2{text}"},
            more=(make_metric("quality", None, "none", note=f"why{text}"),),
        ),
    ]


def test_hostile_text_stays_text_everywhere(make, make_metric, save, tmp_path) -> None:
    plain = compare_results([save(*rows_with(make, make_metric, " x"), folder="plain")])
    hostile = compare_results([save(*rows_with(make, make_metric, HOSTILE), folder="hostile")])
    tags = Counter(tag for tag, _ in read(render_page(plain)).tags)
    page = render_page(hostile)
    reader = read(page)
    assert Counter(tag for tag, _ in reader.tags) == tags
    assert "<script" not in page
    assert "<script>alert(1)</script>red=cmd" in reader.text
    assert "{{ 7*7 }}" in reader.text
    drawings(page)
    target = write_comparison(hostile, tmp_path / "out").parent
    for name in ("comparison.html", "picture-1-tofu.svg"):
        text = (target / name).read_text(encoding="utf-8")
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", text)
        assert "[31m" not in text
    svg = ElementTree.fromstring((target / "picture-1-tofu.svg").read_text(encoding="utf-8"))
    assert not [part for part in svg.iter() if part.tag in {f"{SVG}script", f"{SVG}img"}]


def test_folder_holds_everything_and_is_written_at_once(comparison, tmp_path) -> None:
    page = write_comparison(comparison, tmp_path / "new" / "out")
    assert page == tmp_path / "new" / "out" / "comparison.html"
    assert sorted(path.name for path in page.parent.iterdir()) == [
        "comparison.csv",
        "comparison.html",
        "comparison.json",
        "comparison.md",
        "picture-1-tofu.svg",
        "picture-2-muse.svg",
    ]
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["out"]
    assert Comparison.model_validate_json((page.parent / "comparison.json").read_text()) == comparison
    with pytest.raises(UsageError, match="in use"):
        write_comparison(comparison, tmp_path / "new" / "out")


def test_failure_leaves_nothing_behind(comparison, tmp_path, monkeypatch) -> None:
    def fail(*_: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("falcon_unlearn.report.comparison.page.to_markdown", fail)
    with pytest.raises(KeyboardInterrupt):
        write_comparison(comparison, tmp_path / "new" / "out")
    assert not (tmp_path / "new").exists()


def test_single_picture_is_a_complete_file(comparison, tmp_path) -> None:
    page = write_comparison(comparison, tmp_path / "out")
    text = (page.parent / "picture-1-tofu.svg").read_text(encoding="utf-8")
    svg = ElementTree.fromstring(text)
    assert svg.tag == f"{SVG}svg"
    style = svg.find(f"{SVG}style").text
    defined = set(re.findall(r"--([\w-]+):", style))
    assert set(re.findall(r"var\(--([\w-]+)\)", style)) <= defined
    assert "url(" not in text and "@import" not in text
    styled = set(re.findall(r"\.([a-z][\w-]*)", style))
    used = {name for part in svg.iter() for name in (part.get("class") or "").split()}
    # Hooks for tests and for people who edit the file; the general rules for text and marks draw them.
    hooks = {"base", "target", "retain", "retain_replicate", "retain-line", "target-line", "legend-text"}
    assert used - styled <= hooks


def test_nothing_needs_torch(save, make, references, tmp_path) -> None:
    folder = save(*references, make("A", 0.2, 0.5, seed=0), make("A", 0.3, 0.5, seed=1))
    program = (
        "import sys, pathlib\n"
        "for name in ('torch', 'transformers'): sys.modules[name] = None\n"
        "from falcon_unlearn.report.comparison import compare_results, write_comparison\n"
        "print(write_comparison(compare_results([pathlib.Path(sys.argv[1])]), pathlib.Path(sys.argv[2])))"
    )
    command = [sys.executable, "-c", program, str(folder), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "out" / "comparison.json").read_text())["groups"]
