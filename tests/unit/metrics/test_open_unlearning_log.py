"""Damaged and malicious logs: each fails with a data error that names the file."""

from __future__ import annotations

import pytest

from falcon_unlearn.errors import DataError
from falcon_unlearn.metrics.open_unlearning import aggregate_log
from falcon_unlearn.metrics.open_unlearning_log import read_log
from falcon_unlearn.metrics.open_unlearning_samples import sample_disagreements


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        b"3",
        b"\xff\xfe{}",
        b'{"a": {"agg_value": 1}, "a": {"agg_value": 2}}',
        b'{"a": 1, "A": 2}',
        b'{"a": [1]}',
        b'{"a": "1"}',
        b'{"a": true}',
        b'{"a": ' + b"1" * 5000 + b"}",
        b"[" * 200_000,
        b'{"a":' * 200_000,
    ],
)
def test_files_that_are_no_logs(tmp_path, content):
    path = tmp_path / "odd.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"odd\.json"):
        read_log(path)


def _rows(rows):
    return f'{{"agg_value": 1, "value_by_index": {rows}}}'


@pytest.mark.parametrize(
    "entry",
    [
        '{"agg_value": "1"}',
        '{"agg_value": true}',
        '{"agg_value": []}',
        _rows("[]"),
        _rows("{}"),
        _rows('{"x": {"score": 1}}'),
        _rows('{"-1": {"score": 1}}'),
        _rows('{"1.0": {"score": 1}}'),
        _rows('{"\u0664": {"score": 1}}'),
        _rows('{"1": {"score": 1}, "01": {"score": 2}}'),
        _rows('{"1000000000": {"score": 1}}'),
        _rows('{"0": 1}'),
        _rows('{"0": {"other": 1}}'),
        _rows('{"0": {"score": "1"}}'),
        _rows('{"0": {"score": true}}'),
        _rows('{"0": {"score": {}}}'),
        _rows('{"0": {"score": []}}'),
        _rows('{"0": {"score": [1, null]}}'),
        _rows('{"0": {"score": NaN}}'),
        _rows('{"0": {"score": Infinity}}'),
        _rows('{"0": {"score": 1e999}}'),
        _rows(f'{{"0": {{"score": {"9" * 400}}}}}'),
        _rows('{"0": {"score": 1}, "1": {"score": [1, 2]}}'),
        _rows('{"0": {"score": null}}'),
        _rows(f'{{"0": {{"score": {[1] * 101}}}}}'),
    ],
)
def test_malformed_metrics_name_file_and_metric(tmp_path, entry):
    path = tmp_path / "odd.json"
    path.write_text(f'{{"extraction_strength": {entry}}}', encoding="utf-8")
    with pytest.raises(DataError, match=r"odd\.json.*extraction_strength") as caught:
        aggregate_log(path)
    assert len(caught.value.message) < 400 + len(str(path))


def test_control_characters_do_not_reach_the_message(tmp_path):
    path = tmp_path / "odd.json"
    path.write_text('{"mia_\\u001b[31m": "x\\u001b[2J"}', encoding="utf-8")
    with pytest.raises(DataError) as caught:
        read_log(path)
    assert "\x1b" not in caught.value.message


def test_an_attack_with_one_side_has_no_auc(tmp_path):
    path = tmp_path / "log.json"
    path.write_text(
        f'{{"mia_loss": {{"forget": {_rows(chr(123) + chr(125))}, "auc": 0.7}}}}', encoding="utf-8"
    )
    found = aggregate_log(path)["mia_loss"]
    assert (found.value, found.published) == (None, 0.7)


def test_texts_are_bounded(tmp_path):
    path = tmp_path / "odd.json"
    sample = f'{{"rougeL_recall": 1, "ground_truth": "a", "generation": "{"a " * 20_000}"}}'
    path.write_text(f'{{"forget_Q_A_ROUGE": {_rows("{" + chr(34) + "0" + chr(34) + ": " + sample + "}")}}}')
    assert aggregate_log(path)["forget_Q_A_ROUGE"].value == 1.0
    with pytest.raises(DataError, match=r"odd\.json.*forget_Q_A_ROUGE.*generation"):
        sample_disagreements(read_log(path))


def test_a_folder_or_nothing_is_no_log(tmp_path):
    for path in (tmp_path, tmp_path / "absent.json"):
        with pytest.raises(DataError, match="no such file"):
            read_log(path)


def test_a_published_value_that_is_not_finite_counts_as_absent(tmp_path):
    path = tmp_path / "log.json"
    path.write_text('{"exact_memorization": {"agg_value": NaN, "value_by_index": {"0": {"score": 1}}}}')
    found = aggregate_log(path)["exact_memorization"]
    assert (found.value, found.published) == (1.0, None)


def test_negative_truth_ratios_are_refused(tmp_path):
    path = tmp_path / "odd.json"
    entry = _rows('{"0": {"score": -1}}')
    for name in ("forget_truth_ratio", "wf_Truth_Ratio"):
        path.write_text(f'{{"{name}": {entry}}}')
        with pytest.raises(DataError, match=rf"odd\.json.*{name}"):
            aggregate_log(path)
