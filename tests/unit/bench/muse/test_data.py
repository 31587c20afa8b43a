from __future__ import annotations

import hashlib
import json

import pytest

from falcon_unlearn.bench.muse import sources
from falcon_unlearn.bench.muse.data import load_muse
from falcon_unlearn.errors import DataError, PrerequisiteError


def _write(folder, name, content):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")


def test_a_folder_is_read_with_either_name_of_the_retain_pieces(news_folder, forget):
    data = load_muse(news_folder)
    assert data.texts["raw/forget"] == tuple(forget)
    assert len(data.texts["privleak/retain"]) == 4
    assert data.questions["knowmem/retain_qa"][1].answer == "retain2 man 1"
    assert len(data.questions["knowmem/retain_qa_icl"]) == 2
    assert len(data.verbatim) == 3
    for kind in ("qa", "qa_icl"):
        (news_folder / f"knowmem/retain2_{kind}.json").rename(news_folder / f"knowmem/retain_{kind}.json")
    assert load_muse(news_folder).questions == data.questions


def test_absent_pieces_are_listed_and_asking_for_one_says_so(news_folder):
    data = load_muse(news_folder)
    assert set(data.missing) == {"raw/retain1", "raw/retain2", "raw/holdout"}
    with pytest.raises(DataError, match="raw/retain2 is needed but absent: no file raw/retain2"):
        data.require("raw/retain2")
    (news_folder / "verbmem/forget.json").unlink()
    assert "verbmem/forget" in load_muse(news_folder).missing


def test_files_are_identified_by_hash_and_rows_and_unusual_counts_are_noted(news_folder):
    data = load_muse(news_folder)
    digest = hashlib.sha256((news_folder / "raw/forget.json").read_bytes()).hexdigest()
    assert data.files["raw/forget.json"] == f"sha256 {digest}, 8 rows"
    assert any("raw/forget has 8 rows, MUSE-News has 889" in note for note in data.notes)
    assert data.source == "news"


def test_books_are_plain_texts_that_are_not_cut_at_blank_lines(tmp_path):
    _write(tmp_path, "raw/forget.txt", "First book.\n\nIts second paragraph.\n\nSecond book.\n")
    _write(tmp_path, "raw/retain1.json", ["a", "b"])
    data = load_muse(tmp_path, "Books")
    assert data.texts["raw/forget"] == ("First book.\n\nIts second paragraph.\n\nSecond book.",)
    assert data.texts["raw/retain1"] == ("a", "b")


def test_folds_known_under_another_name_are_filled_in(news_folder):
    data = load_muse(news_folder, folds=True)
    assert data.texts["sust/forget_1"] == data.texts["raw/forget"] == data.texts["scal/forget_1"]
    assert data.texts["sust/forget_3"] == data.texts["raw/other_news"]
    assert {"sust/forget_2", "sust/forget_4", "scal/forget_2"} <= set(data.missing)
    assert not any(name.startswith(("scal", "sust")) for name in load_muse(news_folder).texts)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("raw/forget.json", [{"text": "a"}], "row|line"),
        ("knowmem/forget_qa.json", [{"question": "q"}], "'answer'"),
        ("knowmem/forget_qa.json", [{"question": " ", "answer": "a"}], "'question' is empty"),
        ("verbmem/forget.json", ["text"], "'prompt'"),
        ("verbmem/forget.json", "not json", "not valid JSON"),
    ],
)
def test_malformed_files_are_named(news_folder, name, content, message):
    _write(news_folder, name, content)
    with pytest.raises(DataError, match=message) as caught:
        load_muse(news_folder)
    assert name in str(caught.value)


def test_a_folder_without_forget_set_or_a_wrong_id_is_refused(tmp_path):
    with pytest.raises(DataError, match="no raw/forget"):
        load_muse(tmp_path)
    with pytest.raises(DataError, match="there is no folder"):
        load_muse(tmp_path / "nowhere")
    with pytest.raises(DataError, match="corpus: got 'News'"):
        load_muse("muse-bench/MUSE-Books")


class _Hub:
    """Stands in for the package `datasets`."""

    class exceptions:  # noqa: N801 - the name of the module it replaces
        class DatasetsError(Exception):
            pass

    def __init__(self, subsets):
        self.subsets, self.calls = subsets, []

    def load_dataset(self, path, name):
        self.calls.append((path, name))
        found = self.subsets.get(name, ValueError(f"BuilderConfig '{name}' not found. Available: []"))
        if isinstance(found, Exception):
            raise found
        return found


def _use(monkeypatch, hub):
    monkeypatch.setattr(sources.importlib, "import_module", lambda name: hub)
    return hub


def test_hub_splits_are_read_subset_by_subset(monkeypatch):
    hub = _use(
        monkeypatch,
        _Hub(
            {
                "raw": {"forget": [{"text": "one"}, {"text": ""}], "retain1": [{"text": "two"}]},
                "verbmem": {"forget": [{"prompt": "p", "gt": " g"}]},
                "knowmem": {"retain_qa": [{"question": "q", "answer": "a"}]},
                "privleak": {"retain": [{"text": "r"}]},
            }
        ),
    )
    data = load_muse("muse-bench/MUSE-News", folds=True)
    assert data.texts["raw/forget"] == ("one", "")
    assert data.verbatim[0].continuation == " g"
    assert data.questions["knowmem/retain_qa"][0].question == "q"
    assert data.texts["privleak/retain"] == ("r",)
    assert data.missing["sust/forget_2"] == "muse-bench/MUSE-News has no split sust/forget_2"
    assert data.files["muse-bench/MUSE-News:raw/forget"].endswith("2 rows")
    assert len(hub.calls) == len(set(hub.calls))


@pytest.mark.parametrize(
    "failure",
    [ConnectionError("offline"), ValueError("Couldn't find cache for x for config 'raw'")],
)
def test_an_unreachable_hub_is_not_taken_for_missing_data(monkeypatch, failure):
    _use(monkeypatch, _Hub({"raw": failure}))
    with pytest.raises(PrerequisiteError):
        load_muse("muse-bench/MUSE-News")
