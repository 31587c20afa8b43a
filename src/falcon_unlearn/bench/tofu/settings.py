"""Which authors of TOFU a table forgets, keeps and holds out, and how far its models generate.

Author a is rows 20a .. 20a + 19 of the file `full`; the forget splits are its last authors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from falcon_unlearn.errors import UsageError

ForgetSplit = Literal["forget01", "forget05", "forget10"]
Tier = Literal["T-S", "T-M", "T-L", "full"]

NUM_AUTHORS = 200
ROWS_PER_AUTHOR = 20
FORGET_AUTHORS: dict[ForgetSplit, tuple[int, ...]] = {
    "forget01": tuple(range(198, 200)),
    "forget05": tuple(range(190, 200)),
    "forget10": tuple(range(180, 200)),
}
_PERTURBED_RETAIN_ROWS = 400


@dataclass(frozen=True)
class TofuSetting:
    """State one choice of authors; results compare only when it is the same."""

    tier: Tier
    forget: ForgetSplit
    retain_authors: tuple[int, ...]
    """Authors that target and retain model are trained on and that must stay known."""
    holdout_authors: tuple[int, ...]
    """Authors that no model is trained on, for membership; empty: the official holdout, where it is there."""
    retain_rows: int = _PERTURBED_RETAIN_ROWS
    """Leading rows of `retain_perturbed` that are evaluated."""
    maximum_new_tokens: int = 200
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse authors with two roles, and evaluated retain rows whose author is not trained on."""
        roles = [*FORGET_AUTHORS[self.forget], *self.retain_authors, *self.holdout_authors]
        if len(set(roles)) != len(roles) or not set(roles) <= set(range(NUM_AUTHORS)):
            raise UsageError(
                f"setting {self.tier}: an author has two roles or lies outside 0..{NUM_AUTHORS - 1}",
                hint="forget, retain and holdout authors must not overlap",
            )
        asked = range(-(-self.retain_rows // ROWS_PER_AUTHOR))
        untrained = sorted(set(asked) - set(self.retain_authors))
        if not 1 <= self.retain_rows <= _PERTURBED_RETAIN_ROWS or untrained:
            raise UsageError(
                f"retain_rows: got {self.retain_rows}; rows of authors {untrained or 'that do not exist'} "
                f"would be scored as retained knowledge",
                hint=f"give 1 to {_PERTURBED_RETAIN_ROWS} rows whose authors ({ROWS_PER_AUTHOR} rows each, "
                "from author 0) the models are trained on",
            )

    @property
    def forget_authors(self) -> tuple[int, ...]:
        """Authors to be forgotten."""
        return FORGET_AUTHORS[self.forget]

    @property
    def num_forget_rows(self) -> int:
        """Questions of the forget set."""
        return ROWS_PER_AUTHOR * len(self.forget_authors)

    def describe(self) -> dict[str, str]:
        """Return what must be equal for two results to compare."""
        holdout = author_ranges(self.holdout_authors) if self.holdout_authors else "official"
        return {
            "tier": self.tier,
            "forget": self.forget,
            "forget_authors": author_ranges(self.forget_authors),
            "retain_authors": author_ranges(self.retain_authors),
            "holdout_authors": holdout,
            "retain_rows": str(self.retain_rows),
            "maximum_new_tokens": str(self.maximum_new_tokens),
        }


def author_ranges(authors: Sequence[int]) -> str:
    """Write author numbers for people: `0-9, 20-27`."""
    parts: list[list[int]] = []
    for author in sorted(authors):
        if parts and author == parts[-1][1] + 1:
            parts[-1][1] = author
        else:
            parts.append([author, author])
    return ", ".join(f"{first}-{last}" if first != last else str(first) for first, last in parts)


def tofu_setting(tier: Tier) -> TofuSetting:
    """Return the author choice of a tier: T-S smoke, T-M table on two cores, T-L all of TOFU, full official.

    The official setting forgets 10 %; `official_setting` gives the other two.

    Raises:
        UsageError: there is no such tier.
    """
    if tier == "full":
        return official_setting("forget10")
    if tier not in _TIERS:
        raise UsageError(f"tier: got {tier!r}", hint=f"allowed: {', '.join([*_TIERS, 'full'])}")
    return _TIERS[tier]


def official_setting(forget: ForgetSplit) -> TofuSetting:
    """Return the published setting: every other author is retained, the holdout is the hub's own."""
    if forget not in FORGET_AUTHORS:
        raise UsageError(f"forget split: got {forget!r}", hint=f"allowed: {', '.join(FORGET_AUTHORS)}")
    kept = tuple(range(NUM_AUTHORS - len(FORGET_AUTHORS[forget])))
    return TofuSetting("full", forget, kept, ())


_SMALL_HOLDOUT = tuple(range(100, 110))
_OWN_HOLDOUT = (
    "The holdout for membership is TOFU authors outside the training data, not the official holdout."
)
_TIERS: dict[str, TofuSetting] = {
    "T-S": TofuSetting(
        "T-S",
        "forget01",
        (*range(10), *range(20, 28)),
        (100, 101),
        retain_rows=100,
        maximum_new_tokens=96,
        notes=(
            "Forget quality cannot be read with 40 forget rows: an untouched model already reaches p = 0.01.",
            "18 retain authors instead of 198.",
            _OWN_HOLDOUT,
        ),
    ),
    "T-M": TofuSetting(
        "T-M",
        "forget05",
        tuple(range(50)),
        _SMALL_HOLDOUT,
        maximum_new_tokens=96,
        notes=("50 retain authors instead of 190: the forget share is 17 % instead of 5 %.", _OWN_HOLDOUT),
    ),
    "T-L": TofuSetting(
        "T-L",
        "forget10",
        tuple(author for author in range(180) if author not in _SMALL_HOLDOUT),
        _SMALL_HOLDOUT,
        notes=("170 retain authors instead of 180: ten are the holdout.", _OWN_HOLDOUT),
    ),
}
