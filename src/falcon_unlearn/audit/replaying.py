"""Keep what an attack yielded, and yield it again without the attack.

A finished attack is not run a second time: the journal holds its scores and describes its variants.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

from falcon_unlearn.audit.base import Attacked
from falcon_unlearn.audit.summarise import VariantInfo


def collected(variants: Iterator[Attacked], found: list[Attacked]) -> Iterator[Attacked]:
    """Yield variants, and put each into a list before."""
    for attacked in variants:
        found.append(attacked)
        yield attacked


def variants_record(found: Sequence[Attacked], infos: Mapping[str, VariantInfo]) -> dict[str, Any]:
    """Describe all variants of an attack for the journal."""
    return {
        "variants": [
            dataclasses.asdict(infos[attacked.variant])
            | {"formats": list(attacked.formats), "lasts": attacked.lasts}
            for attacked in found
        ]
    }


def replayed(record: Mapping[str, Any], infos: dict[str, VariantInfo]) -> Iterator[Attacked]:
    """Yield the variants of a record; their scores are asked for in the order in which they were computed.

    Args:
        record: From `variants_record`.
        infos: Receives the descriptions.
    """
    for entry in record["variants"]:
        infos[entry["variant"]] = VariantInfo(
            entry["variant"], entry["control"], entry["equivalents"], entry["details"]
        )
        yield Attacked(
            entry["variant"],
            formats=tuple(entry["formats"]),
            control=entry["control"],
            again=nullcontext if entry["lasts"] else None,
        )
