"""Optimizers by name: AdamW and SGD of torch, sign momentum, and the released code's Sophia variant."""

from __future__ import annotations

from falcon_unlearn.optimizers.build import OPTIMIZERS, build_optimizer
from falcon_unlearn.optimizers.sign_momentum import SignMomentum
from falcon_unlearn.optimizers.sophia_reference import SophiaReference

__all__ = ["OPTIMIZERS", "SignMomentum", "SophiaReference", "build_optimizer"]
