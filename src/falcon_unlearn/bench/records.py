"""The result records of the benchmarks, under the name that the benchmarks use."""

from __future__ import annotations

from falcon_unlearn.results_bench import BENCH_VERSION, BenchMetric, BenchResult, Gate

__all__ = ["BENCH_VERSION", "BenchMetric", "BenchResult", "Gate"]
