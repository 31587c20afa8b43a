"""The catalogue holds exactly the methods that a recipe may name."""

from __future__ import annotations

from typing import get_args

from falcon_unlearn.config.catalogue import METHODS, MethodName


def test_every_name_has_an_entry_and_every_entry_a_name():
    assert list(METHODS) == list(get_args(MethodName))
    assert all(name == method.name for name, method in METHODS.items())
