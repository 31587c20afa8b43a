"""The audit's words, chart and page say what the record says, and nothing kinder."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from audit_records import ATTACKS, attack, audit_record, baseline
from falcon_unlearn.errors import UsageError
from falcon_unlearn.report import model_card, render_audit, render_report
from falcon_unlearn.report.audit_charts import estimate_words, recovery_chart
from falcon_unlearn.report.audit_view import audit_note, build_audit_view
from falcon_unlearn.report.verdict import AUDIT_NOTE
from falcon_unlearn.results_audit import Estimate, MembershipScore, MemorisationResult, ModelMemorisation
from falcon_unlearn.runs import write_json_atomic


def chart_of(rows, **options):
    return recovery_chart("title", "note", rows, **({"limit": 0.1, "has_null": True} | options))


def centres(svg, kind):
    root = ElementTree.fromstring(str(svg))
    return [float(node.get("cx")) for node in root.iter() if node.get("class") == f"mark {kind}"]


def test_the_chart_orders_attacks_by_what_they_reach_and_places_null_limit_and_original():
    svg = chart_of([attack(name, value) for name, value in ATTACKS.items()]).svg
    reached = centres(svg, "before")
    assert reached == sorted(reached, reverse=True)
    assert len(reached) == 4
    assert len(centres(svg, "after")) == 3, "without attack nothing is recovered"
    root = ElementTree.fromstring(str(svg))
    lines = {node.get("class"): float(node.get("x1")) for node in root.iter() if node.tag.endswith("line")}
    assert lines["chance"] < lines["marked"] < lines["reference"]
    nearest = reached[0] - lines["chance"], lines["reference"] - lines["chance"]
    assert nearest[0] / nearest[1] == pytest.approx(0.82, abs=0.01)


def test_an_undefined_share_leaves_no_mark_and_says_why():
    undefined = Estimate(value=None, note="the denominator is too small")
    svg = chart_of([attack("relearning", 0.5, net_recovered=undefined)]).svg
    assert not centres(svg, "after")
    assert "the denominator is too small" in str(svg)


def test_values_far_outside_are_drawn_at_the_border():
    svg = chart_of([attack("relearning", 9.0)]).svg
    assert max(centres(svg, "before")) <= 960


def test_without_a_null_raw_recovery_is_shown_and_named_so():
    audit = audit_record(null_source="chance", attacks=[attack("relearning", 0.5)])
    view = build_audit_view(audit)
    assert "no null" in view.recovered_name
    assert view.attacks[0].recovered.startswith("50%")
    assert "guessing" in str(view.charts[0].legend)


@pytest.mark.parametrize(
    ("verdict", "tone"),
    [
        ("removed (bounded)", "good"),
        ("suppressed", "bad"),
        ("not removed", "bad"),
        ("damaged", "bad"),
        ("inconclusive", "unknown"),
    ],
)
def test_only_a_bounded_removal_is_shown_as_good_and_no_word_is_stronger(verdict, tone):
    audit = audit_record(verdict=verdict)
    assert build_audit_view(audit).tone == tone
    assert verdict in audit_note(audit)
    assert "forgotten" not in audit_note(audit)


def test_formats_that_say_nothing_get_no_chart():
    view = build_audit_view(audit_record(baselines=[baseline("text", informative=False)]))
    assert view.charts == []
    assert view.baselines[0].left == "says nothing here"


def test_the_page_holds_every_attack_and_escapes_what_it_shows(tmp_path):
    hostile = "<script>alert(1)</script>\x1b[31m"
    rows = [*audit_record().attacks, attack("prompting", 0.3, variant=hostile, note=hostile, counts=False)]
    write_json_atomic(tmp_path / "audit.json", audit_record(attacks=rows, reasons=[hostile]))
    page = render_audit(tmp_path).read_text(encoding="utf-8")
    assert "<script" not in page
    assert "\x1b" not in page
    for name in ("no attack", "relearning", "quantisation", "direction ablation", "prompting"):
        assert name in page
    assert "worst&lt;=0.2: failed" in page
    assert "http" not in re.sub(r"http-equiv|http://www.w3.org/\S+", "", page)


def test_memorisation_is_shown_as_no_attack(tmp_path):
    sure = Estimate(value=0.9, low=0.8, high=1.0)
    model = ModelMemorisation(
        model="unlearned",
        extraction_strength=sure,
        exact_memorisation=sure,
        extraction_strength_others=sure,
        membership=[MembershipScore(name="min_k", auc=sure, true_positive_rate=None)],
    )
    found = MemorisationResult(num_members=9, num_others=9, others="x", blind=sure, models=[model])
    write_json_atomic(tmp_path / "audit.json", audit_record(memorisation=found))
    page = render_audit(tmp_path).read_text(encoding="utf-8")
    assert f"Min-K {estimate_words(sure)}" in page
    assert "No recovery attack" in page


def test_a_folder_without_audit_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"audit\.json"):
        render_audit(tmp_path)


def test_the_report_and_card_of_a_run_carry_its_audit(run, write):
    run_folder = write(run)
    without = render_report(run_folder).read_text(encoding="utf-8")
    assert AUDIT_NOTE in without
    assert 'id="audit"' not in without
    write_json_atomic(run_folder / "falcon" / "audit.json", audit_record())
    page = render_report(run_folder).read_text(encoding="utf-8")
    assert AUDIT_NOTE not in page
    assert 'id="audit"' in page
    assert 'href="#audit"' in page
    card = model_card(run_folder)
    assert "## Recovery audit" in card
    attacks = re.findall(r"^\| (\w[\w ]*) \| variant-1", card, flags=re.MULTILINE)
    assert attacks[0] == "relearning", "the attack that succeeded most comes first"
