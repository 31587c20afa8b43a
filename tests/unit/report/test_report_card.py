from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from falcon_unlearn.report import model_card
from falcon_unlearn.report.card import escape_markdown, split_card

Write = Callable[[dict[str, Any]], Path]


def metadata(card: str) -> dict[str, Any]:
    return split_card(card)[0]


def test_card_has_metadata_table_limits_and_command(run: dict[str, Any], write: Write) -> None:
    card = model_card(write(run))
    assert metadata(card) == {
        "base_model": "HuggingFaceTB/SmolLM2-135M-Instruct",
        "base_model_relation": "finetune",
        "library_name": "transformers",
        "tags": ["unlearning", "falcon-unlearn", "falcon"],
    }
    assert "| symbols | forget | multiple choice, by text | 80 | 25% | 96.2% (89.5% to 98.7%) | 26.2%" in card
    assert "suppressed at best" in card
    assert "```bash\nfalcon-unlearn run HuggingFaceTB/SmolLM2-135M-Instruct --forget" in card
    assert "3 of 272 tensors changed" in card


def test_licence_and_text_of_the_base_card_are_kept(run: dict[str, Any], write: Write) -> None:
    head = "license: apache-2.0\nlanguage: [en]\ntags: [chat, unlearning]\nbase_model: evil/other"
    base = f"---\n{head}\n---\n# Base\nWords."
    card = model_card(write(run), base)
    found = metadata(card)
    assert found["license"] == "apache-2.0"
    assert found["language"] == ["en"]
    assert found["tags"] == ["unlearning", "falcon-unlearn", "falcon", "chat"]
    assert found["base_model"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert card.rstrip().endswith("## Card of the original model\n\n# Base\nWords.")
    assert card.count("\n---\n") == 2


@pytest.mark.parametrize(
    "base", ["---\nlicense: [\n---\nText.", "---\n!!python/object/apply:os.getcwd []\n---\nText."]
)
def test_unreadable_base_metadata_is_left_out(run: dict[str, Any], write: Write, base: str) -> None:
    card = model_card(write(run), base)
    assert "license" not in metadata(card)
    assert card.rstrip().endswith("Text.")


def test_a_local_model_is_not_called_a_hub_model(
    run: dict[str, Any], write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "name").mkdir(parents=True)
    del run["manifest.json"]
    for name in ("org/name", "/home/mallory/model", "./model", "model.gguf"):
        run["recipe.resolved.yaml"]["model"]["name"] = name
        card = model_card(write(run))
        assert "base_model" not in metadata(card)
        assert "mallory" not in card


def test_run_without_evaluation_claims_nothing(run: dict[str, Any], write: Write) -> None:
    del run["evaluation.after.json"]
    card = model_card(write(run))
    assert "Not measured" in card
    assert "| set |" not in card


def test_hostile_names_cannot_break_the_card(run: dict[str, Any], write: Write) -> None:
    name = "x | y\n\n# Owned <script> [link](http://e.com) `code` \x1b[31m"
    for side in ("before", "after"):
        run[f"evaluation.{side}.json"]["sets"][0]["name"] = name
    run["manifest.json"]["command"] = "falcon-unlearn run '```\n# Owned'"
    card = model_card(write(run))
    yaml.safe_load(card.split("---")[1])
    assert "<script>" not in card.replace("\\<script\\>", "")
    assert [line for line in card.splitlines() if line.startswith("# ")] == [
        "# HuggingFaceTB/SmolLM2-135M-Instruct, changed by falcon-unlearn",
        "# Owned'",
    ]
    assert "````bash" in card
    rows = [line.replace("\\|", "") for line in card.splitlines() if line.startswith("| ")]
    assert {row.count("|") for row in rows} == {8}
    assert "\x1b" not in card


def test_escape_markdown_leaves_one_harmless_line() -> None:
    assert escape_markdown("a_b\n\n# c | *d*") == r"a\_b \# c \| \*d\*"
