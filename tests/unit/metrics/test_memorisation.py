from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from falcon_unlearn.errors import DataError
from falcon_unlearn.metrics.memorisation import exact_memorisation, extraction_strength

FLAGS = st.lists(st.booleans(), min_size=2, max_size=30)


@given(FLAGS)
def test_dropping_the_last_token_is_scoring_without_it(matches):
    assert extraction_strength(matches, drop_last=True) == extraction_strength(matches[:-1])
    assert exact_memorisation(matches, drop_last=True) == exact_memorisation(matches[:-1])


@given(FLAGS)
def test_the_floor_is_the_published_search(matches):
    """Search prefixes of length 0 to n - 1 and keep the last one tried where none fits."""
    prefix = 0
    for prefix in range(len(matches)):
        if all(matches[prefix:]):
            break
    published = 1 - prefix / len(matches)
    assert extraction_strength(matches, floor_of_one_token=True) == pytest.approx(published)


def test_the_floor_by_hand():
    assert extraction_strength([True, True, True, False]) == 0.0
    assert extraction_strength([True, True, True, False], floor_of_one_token=True) == 0.25
    assert extraction_strength([True, True, True, False], drop_last=True) == 1.0


@pytest.mark.parametrize("measure", [exact_memorisation, extraction_strength])
def test_answers_without_tokens_are_refused(measure):
    with pytest.raises(DataError, match="got 0"):
        measure([])
    with pytest.raises(DataError, match="got 1 before the last one was dropped"):
        measure([True], drop_last=True)
