"""Files and hub data sets become the same examples; every failure is one clear message."""

from __future__ import annotations

import hashlib
import importlib
import json
import types
from pathlib import Path

import pytest

from falcon_unlearn.config.data import CorpusSettings
from falcon_unlearn.data import sources
from falcon_unlearn.data.sources import load_examples
from falcon_unlearn.errors import DataError, PrerequisiteError
from falcon_unlearn.examples import Example

PAIRS = [("Where?", "Here."), ("When?", "Now. \u00e9\u05d0\U0001f600")]
EXAMPLES = tuple(Example.of_question(*pair) for pair in PAIRS)
TOFU = Path(__file__).resolve().parents[4] / "shared" / "data" / "tofu"


def settings(path, **options):
    return CorpusSettings(name="facts", path=str(path), **options)


def write(path, text, encoding="utf-8"):
    path.write_bytes(text.encode(encoding))
    return path


def rows():
    return [{"question": question, "answer": answer} for question, answer in PAIRS]


@pytest.mark.parametrize("suffix", ["json", "jsonl", "JSONL", "ndjson", "data"])
@pytest.mark.parametrize("layout", ["array", "lines", "bom", "crlf", "no final newline"])
def test_the_content_decides_not_the_name(tmp_path, suffix, layout):
    text = json.dumps(rows()) if layout == "array" else "\n".join(json.dumps(row) for row in rows()) + "\n"
    if layout == "crlf":
        text = text.replace("\n", "\r\n")
    if layout == "no final newline":
        text = text.rstrip()
    path = write(tmp_path / f"facts.{suffix}", text, "utf-8-sig" if layout == "bom" else "utf-8")
    loaded = load_examples(settings(path))
    assert loaded.examples == EXAMPLES
    assert loaded.source == f"facts.{suffix}"
    assert loaded.sha256 == hashlib.sha256("".join(e.canonical + "\n" for e in EXAMPLES).encode()).hexdigest()


def test_hash_depends_on_content_order_and_kind(tmp_path):
    texts = [["a", "b"], ["b", "a"], ["a", "c"]]
    hashes = {load_examples(settings(write(tmp_path / "x.json", json.dumps(t)))).sha256 for t in texts}
    hashes.add(
        load_examples(settings(write(tmp_path / "x.json", '[{"prompt": "a", "completion": "b"}]'))).sha256
    )
    hashes.add(
        load_examples(settings(write(tmp_path / "x.json", '[{"question": "a", "answer": "b"}]'))).sha256
    )
    assert len(hashes) == 5


def test_plain_text(tmp_path):
    path = write(tmp_path / "facts.txt", "[one]\r\nline\r\n\r\ntwo\r\n")
    assert load_examples(settings(path)).examples == (Example.of_text("[one]\nline"), Example.of_text("two"))
    assert len(load_examples(settings(path, text_split="line")).examples) == 3


def test_parquet_rows_match_json(tmp_path):
    arrow, parquet = importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    path = tmp_path / "facts.parquet"
    parquet.write_table(arrow.Table.from_pylist(rows()), path)
    assert load_examples(settings(path)).examples == EXAMPLES
    path.rename(tmp_path / "facts.bin")
    assert load_examples(settings(tmp_path / "facts.bin")).examples == EXAMPLES
    (tmp_path / "torn.parquet").write_bytes((tmp_path / "facts.bin").read_bytes()[:-20])
    with pytest.raises(DataError, match=r"torn\.parquet is not a readable parquet file"):
        load_examples(settings(tmp_path / "torn.parquet"))
    conversation = [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}]
    parquet.write_table(arrow.Table.from_pylist(conversation), path)
    assert load_examples(settings(path)).examples[0].plain_text == "a\nb"


@pytest.mark.parametrize(
    ("name", "content", "options", "words"),
    [
        ("a.jsonl", "", {}, ["a.jsonl is empty"]),
        ("a.json", "[]", {}, ["a.json holds an empty list"]),
        ("a.csv", "text\nhello\n", {}, ["a.csv is neither JSON nor parquet", ".jsonl"]),
        (
            "a.txt",
            "hello",
            {"columns": {"text": "x"}},
            ["a.txt is plain text", "leave `format` and `columns` out"],
        ),
        ("a.txt", "hello", {"split": "train[:4]"}, ["`split` applies to hub data sets only", "`limit`"]),
        ("a.txt", "hello", {"revision": "abc"}, ["`revision` applies to hub data sets only"]),
        (
            "a.jsonl",
            '{"text": "a"}\n{"text": 1}\n',
            {},
            ["a.jsonl, line 2", "must be a string, found a number"],
        ),
    ],
)
def test_unusable_files(tmp_path, name, content, options, words):
    with pytest.raises(DataError) as caught:
        load_examples(settings(write(tmp_path / name, content), **options))
    said = f"{caught.value.message} {caught.value.hint}"
    assert all(word in said for word in words), said
    assert caught.value.exit_code == 2


def test_missing_file_names_the_nearest(tmp_path):
    write(tmp_path / "symbols.jsonl", "{}")
    write(tmp_path / "capitals.txt", "x")
    with pytest.raises(DataError) as caught:
        load_examples(settings(tmp_path / "symbol.jsnl"))
    assert caught.value.hint == "did you mean symbols.jsonl?"
    with pytest.raises(DataError) as caught:
        load_examples(settings(tmp_path / "zzz.txt"))
    assert "capitals.txt, symbols.jsonl" in caught.value.hint
    with pytest.raises(DataError, match="there is no file") as caught:
        load_examples(settings(tmp_path / "gone" / "x.txt"))
    assert "the folder gone does not exist" in caught.value.hint


def test_folders_are_refused(tmp_path):
    with pytest.raises(DataError, match="is a folder") as caught:
        load_examples(settings(tmp_path))
    assert "no data files" in caught.value.hint
    write(tmp_path / "a.jsonl", "{}")
    with pytest.raises(DataError, match="is a folder") as caught:
        load_examples(settings(tmp_path))
    assert "a.jsonl" in caught.value.hint


class FakeDatasets(types.ModuleType):
    """Stands in for the optional package: records the call, then returns rows or raises."""

    def __init__(self, outcome):
        super().__init__("datasets")
        self.outcome, self.calls = outcome, []
        self.exceptions = types.SimpleNamespace(DatasetsError=type("DatasetsError", (Exception,), {}))

    def load_dataset(self, path, **options):
        self.calls.append((path, options))
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome


def test_hub_data_set(tmp_path, monkeypatch):
    fake = FakeDatasets(rows())
    monkeypatch.setattr(sources, "_optional", lambda module, purpose: fake)
    monkeypatch.chdir(tmp_path)
    loaded = load_examples(settings("owner/set", subset="forget10", split="train[:2]", revision="abc"))
    assert loaded.examples == EXAMPLES
    assert loaded.source == "owner/set:forget10[train[:2]]@abc"
    assert fake.calls == [("owner/set", {"name": "forget10", "split": "train[:2]", "revision": "abc"})]
    with pytest.raises(DataError, match=r"owner/set\[train\], row 1"):
        load_examples(settings("owner/set", columns={"text": "body"}))


def test_a_local_file_wins_over_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner").mkdir()
    write(tmp_path / "owner" / "set", '{"text": "local"}')
    assert load_examples(settings("owner/set")).examples == (Example.of_text("local"),)
    with pytest.raises(DataError, match="there is no file owner/sett"):
        load_examples(settings("owner/sett"))


@pytest.mark.parametrize(
    ("outcome", "kind", "words"),
    [
        (
            FileNotFoundError("Dataset 'a/b' doesn't exist\nmore"),
            DataError,
            "neither a file nor a hub data set",
        ),
        (ConnectionError("offline"), PrerequisiteError, "cannot reach the hub"),
        (ValueError('Unknown split "tran"'), DataError, "Unknown split"),
        (RuntimeError("Dataset scripts are no longer supported"), DataError, "no longer supported"),
    ],
)
def test_hub_failures(tmp_path, monkeypatch, outcome, kind, words):
    monkeypatch.setattr(sources, "_optional", lambda module, purpose: FakeDatasets(outcome))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(kind, match=words) as caught:
        load_examples(settings("a/b"))
    assert "\n" not in caught.value.message
    assert caught.value.hint


def test_missing_optional_package_names_the_extra(tmp_path, monkeypatch):
    def refuse(module):
        raise ImportError(module)

    monkeypatch.setattr(sources.importlib, "import_module", refuse)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.parquet").write_bytes(b"PAR1....PAR1")
    for path in ("a/b", "x.parquet"):
        with pytest.raises(PrerequisiteError) as caught:
            load_examples(settings(path))
        assert caught.value.hint == "pip install 'falcon-unlearn[data]'"
        assert caught.value.exit_code == 3


@pytest.mark.skipif(not TOFU.is_dir(), reason="the TOFU files are not beside the repository")
@pytest.mark.parametrize(
    ("name", "number"), [("forget10", 400), ("retain90", 3600), ("world_facts_perturbed", 117)]
)
def test_tofu_files(name, number):
    loaded = load_examples(settings(TOFU / f"{name}.json"))
    assert len(loaded.examples) == number
    assert all(example.is_question and not example.is_blank for example in loaded.examples)
