"""Write a comparison as a folder: page, pictures, tables and the record they come from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment
from markupsafe import Markup

from falcon_unlearn.report.comparison import words
from falcon_unlearn.report.comparison.picture import Picture, draw
from falcon_unlearn.report.comparison.records import Comparison, Group
from falcon_unlearn.report.comparison.tables import to_csv, to_markdown
from falcon_unlearn.report.html import environment
from falcon_unlearn.runs import staged_folder, write_json_atomic, write_text_atomic

PAGE = "comparison.html"
_FONT = 'system-ui, -apple-system, "Segoe UI", "Helvetica Neue", Arial, sans-serif'


@dataclass(frozen=True)
class GroupView:
    """Hold what the page shows of one group."""

    group: Group
    heading: str
    """Short where that tells the groups apart."""
    anchor: str
    drawing: Markup | None
    caption: str
    conclusions: list[str]


def write_comparison(comparison: Comparison, output: Path) -> Path:
    """Create `output` with comparison.html, .json, .csv and .md, and one SVG file for each picture.

    Returns:
        The path of the page.

    Raises:
        UsageError: `output` is in use or cannot be created.
        PrerequisiteError: the file system refused.
    """
    templates = environment()
    pictures = [draw(group, comparison.utility_tolerance) for group in comparison.groups]
    with staged_folder(output) as folder:
        write_json_atomic(folder / "comparison.json", comparison)
        write_text_atomic(folder / "comparison.csv", to_csv(comparison))
        write_text_atomic(folder / "comparison.md", to_markdown(comparison))
        style = _picture_style(templates)
        for number, (group, picture) in enumerate(zip(comparison.groups, pictures, strict=True), start=1):
            if picture is not None:
                write_text_atomic(
                    folder / f"picture-{number}-{group.benchmark}.svg", picture.standalone(style)
                )
        write_text_atomic(folder / PAGE, _render(comparison, pictures, templates))
    return output / PAGE


def render_page(comparison: Comparison) -> str:
    """Fill the template of the page. All text is escaped."""
    pictures = [draw(group, comparison.utility_tolerance) for group in comparison.groups]
    return _render(comparison, pictures, environment())


def _render(comparison: Comparison, pictures: list[Picture | None], templates: Environment) -> str:
    headings = [group.heading for group in comparison.groups]
    views = [
        GroupView(
            group=group,
            heading=group.heading if headings.count(group.heading) == 1 else group.title,
            anchor=f"group-{number}",
            drawing=picture.inline(f"group {number}") if picture else None,
            caption=_caption(group),
            conclusions=words.conclusions(group, comparison.utility_tolerance),
        )
        for number, (group, picture) in enumerate(zip(comparison.groups, pictures, strict=True), start=1)
    ]
    page = templates.get_template("comparison.html.jinja")
    return page.render(comparison=comparison, views=views, words=words)


def _caption(group: Group) -> str:
    """Explain the picture of a group."""
    better = "up" if group.higher_utility else "down"
    column = group.column(group.forget_axis)
    if column is None or column.retain is None:
        aim = "to the right" if column is not None and column.desired == "higher" else "to the left"
        return f"Better is {better} and {aim}. Filled points are beaten by no other on both axes."
    return (
        f"Better is {better} and near the line of the retain model ({group.retain}); its grey band is the "
        "range of the retain models. Filled points are beaten by no other in distance and utility. Beyond "
        "the band a model knows less than one that never saw the data: over-forgetting, no merit."
    )


def _picture_style(templates: Environment) -> str:
    """Return the style of a single picture: the colours of the light theme and the rules of the charts."""
    names = ("style.css", "charts.css", "comparison.css")
    page, charts, comparison = (templates.get_template(name).render() for name in names)
    colours = page.split("}", 1)[0] + "}"
    own = f".chart {{ font-family: {_FONT}; }} .paper {{ fill: var(--paper); }}"
    return "\n".join([colours, own, charts, comparison])
