"""Benchmark metrics as pure functions of per-sample numbers; no model and no torch."""
