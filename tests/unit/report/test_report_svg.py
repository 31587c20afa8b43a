from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markupsafe import Markup

from falcon_unlearn.report import format as words
from falcon_unlearn.report.svg import Scale, band, domain, element, path, round_ticks, tick_labels

finite = st.floats(min_value=-1e6, max_value=1e6, allow_nan=False, allow_infinity=False)


@given(low=finite, span=st.floats(min_value=1e-3, max_value=1e6), count=st.integers(2, 12))
def test_ticks_are_round_inside_and_distinct(low: float, span: float, count: int) -> None:
    high = low + span
    ticks = round_ticks(low, high, count)
    step = span * 1e-6
    assert all(low - step <= tick <= high + step for tick in ticks)
    assert all(second > first for first, second in pairwise(ticks))
    assert len(ticks) <= count + 1
    if max(map(abs, (low, high))) < 1e4 * span:
        labels = tick_labels(ticks)
        assert len(set(labels)) == len(labels)


@given(values=st.lists(st.one_of(finite, st.sampled_from([math.nan, math.inf, -math.inf])), max_size=8))
def test_domain_is_never_empty(values: list[float]) -> None:
    low, high = domain(values)
    assert math.isfinite(low)
    assert math.isfinite(high)
    assert low < high
    assert all(low <= value <= high for value in values if math.isfinite(value))


@pytest.mark.parametrize("logarithmic", [False, True])
def test_scale_keeps_order_and_stays_inside(logarithmic: bool) -> None:
    scale = Scale(1.0, 1000.0, 50.0, 450.0, logarithmic)
    placed = [scale(value) for value in (-5.0, 1.0, 10.0, 100.0, 1000.0, 1e9)]
    assert placed == sorted(placed)
    assert (placed[0], placed[-1]) == (50.0, 450.0)
    assert all(1.0 <= tick <= 1000.0 for tick in scale.ticks(5))


def test_lines_break_at_missing_numbers() -> None:
    drawn = path([(0, 1), (1, math.nan), (2, 3), (3, 4)], "line")
    assert drawn == '<path d="M0 1 M2 3 L3 4" class="line"></path>'
    filled = band([0, 1, 2, 3, 4], [0] * 5, [1, 1, math.nan, 1, 1], "band")
    assert filled.count("M") == filled.count("Z") == 2


def test_elements_escape_and_refuse_missing_coordinates() -> None:
    built = element("text", "a<b&\x1b[1mc", title_='"><script>')
    assert built == '<text title="&#34;&gt;&lt;script&gt;">a&lt;b&amp;c</text>'
    assert element("g", Markup("<path></path>")) == "<g><path></path></g>"
    with pytest.raises(ValueError, match="coordinate"):
        element("circle", cx=math.nan)


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (words.share(0.9625), "96.2%"),
        (words.share(1.0), "100%"),
        (words.share(0.0004), "0.04%"),
        (words.share(math.nan), "n/a"),
        (words.quantity(36.2512, 4), "36.25"),
        (words.quantity(134_515_008), "1.35e8"),
        (words.quantity(12_400), "12,400"),
        (words.quantity(3.1e-7), "3.1e-7"),
        (words.quantity(9.9996), "10"),
        (words.quantity(math.inf), "infinite"),
        (words.points(-0.05), "\u22125"),
        (words.points(0.0), "\u00b10"),
        (words.signed(0.27), "+0.27"),
        (words.duration(0.42), "0.42 s"),
        (words.duration(59.96), "60 s"),
        (words.duration(245.2), "4 min 05 s"),
        (words.duration(7380), "2 h 03 min"),
        (words.operations(9.4e12), "9.4 TFLOP"),
        (words.plural(1, "step"), "1 step"),
        (words.listing(["a", "b", "c"]), "a, b and c"),
        (words.shorten("abcdef", 4), "abc\u2026"),
    ],
)
def test_numbers_in_words(written: str, expected: str) -> None:
    assert written == expected


def test_clean_keeps_text_and_drops_controls() -> None:
    assert words.clean("\u0645\u06cc\u200c\u062e\n\t\u00e9\U0001f469\u200d\U0001f680") == (
        "\u0645\u06cc\u200c\u062e\n\t\u00e9\U0001f469\u200d\U0001f680"
    )
    assert words.clean("a\x1b]0;title\x07b\x1b[2Jc\u202ed\ud800e\x85f\r\ng") == "abcdef\ng"
