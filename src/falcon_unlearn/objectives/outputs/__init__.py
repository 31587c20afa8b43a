"""Objectives on a model's outputs."""
