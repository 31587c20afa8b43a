from __future__ import annotations

from falcon_unlearn.bench.muse.dedupe import deduplicate


def _words(start, count):
    return [f"w{number}" for number in range(start, start + count)]


def _text(*parts):
    return " ".join(word for part in parts for word in part)


def test_each_step_is_counted_on_a_hand_made_case():
    forget = [_text(_words(0, 40)), _text(_words(100, 40))]
    articles = [
        _text(_words(200, 40)),
        "",
        _text(_words(200, 40)).upper(),
        f" {forget[1]}\n",
        _text(_words(0, 20), _words(300, 20)),
        _text(_words(200, 30), _words(400, 10)),
        _text(_words(500, 40)),
    ]
    found = deduplicate(articles, forget)
    counts = found.counts
    assert (counts.read, counts.empty, counts.repeats, counts.forget_copies) == (7, 1, 1, 1)
    assert (counts.near_forget, counts.near_repeats, counts.kept) == (1, 1, 2)
    assert counts.after_exact == 4
    assert found.articles == (articles[0], articles[6]) and found.positions == (0, 6)
    assert "2 of 7 articles kept" in counts.describe()


def test_the_share_is_a_limit_that_may_be_reached_but_not_passed():
    forget = [_text(_words(0, 40))]
    # 9 of the 45 shingles stand in the forget set: a share of exactly one fifth.
    at_limit = _text(_words(0, 16), _words(100, 36))
    assert deduplicate([at_limit], forget).counts.near_forget == 0
    beyond = _text(_words(0, 17), _words(100, 36))
    assert deduplicate([beyond], forget).counts.near_forget == 1


def test_lines_quoted_from_the_forget_set_or_common_to_many_articles_go():
    quote = _text(_words(0, 12))
    forget = [f"{quote}\n\n{_text(_words(20, 40))}"]
    bodies = [_text(_words(1000 * k, 80)) for k in range(1, 7)]
    notice = "Contact the editors"
    articles = [f"{body}\n\n{notice}" for body in bodies[:5]] + [f"{bodies[5]}\n{quote.title()}"]
    found = deduplicate(articles, forget)
    assert found.articles == tuple(bodies)
    assert found.counts.lines_removed == 6
    assert deduplicate(articles[:4], forget).articles[0].endswith(notice)


def test_an_article_of_nothing_but_boilerplate_is_dropped():
    articles = [f"Notice\n{_text(_words(1000 * k, 30))}" for k in range(1, 6)] + ["Notice "]
    found = deduplicate(articles, ["x"])
    assert found.counts.nothing_left == 1 and found.counts.kept == 5


def test_the_forget_set_has_no_shingle_in_common_with_what_is_left_beyond_the_limit():
    forget = [_text(_words(0, 60))]
    articles = [_text(_words(50 - k, 8 + k), _words(200 + 100 * k, 60)) for k in range(12)]
    for text in deduplicate(articles, forget).articles:
        words = text.split()
        shared = sum(
            tuple(words[i : i + 8]) in set(zip(*(forget[0].split()[s:] for s in range(8)), strict=False))
            for i in range(len(words) - 7)
        )
        assert shared <= 0.2 * (len(words) - 7)
