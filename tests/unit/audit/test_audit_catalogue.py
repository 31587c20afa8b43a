from __future__ import annotations

import pytest

from falcon_unlearn.audit.catalogue import ATTACKS, chosen_attacks
from falcon_unlearn.audit.keeping import attack_key
from falcon_unlearn.errors import UsageError


def test_every_attack_bears_the_name_of_its_entry_and_has_a_key_of_its_own():
    attacks = chosen_attacks(tuple(ATTACKS), "full")
    assert [attack.name for attack in attacks] == list(ATTACKS)
    assert len({attack_key(attack) for attack in attacks}) == len(attacks)
    assert all(attack.source for attack in attacks)


def test_the_quick_tier_is_a_part_of_the_full_one():
    quick = [attack.name for attack in chosen_attacks((), "quick")]
    full = [attack.name for attack in chosen_attacks((), "full")]
    assert set(quick) < set(full) and full == list(ATTACKS)
    assert {"quantisation", "logit-lens", "relearning-rtt", "sampling"} <= set(quick)


def test_unknown_attacks_are_refused_with_the_allowed_names():
    with pytest.raises(UsageError, match="allowed are wording, "):
        chosen_attacks(("wordings",), "quick")
