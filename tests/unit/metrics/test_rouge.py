from __future__ import annotations

import pytest

from falcon_unlearn.metrics.rouge import rouge_scores


def test_by_hand():
    found = rouge_scores("the author wrote two books", "two books wrote the author")
    assert found.rouge_1_recall == 1.0
    assert found.rouge_l_recall == pytest.approx(2 / 5)
    assert rouge_scores("a b c d", "a b").rouge_l_f1 == pytest.approx(2 / 3)


def test_the_stemmer_changes_the_result():
    assert rouge_scores("writing novels", "writes novel").rouge_l_recall == 1.0
    assert rouge_scores("writing novels", "writes novel", use_stemmer=False).rouge_l_recall == 0.0


def test_empty_generation():
    assert rouge_scores("a b", "").rouge_l_f1 == 0.0
