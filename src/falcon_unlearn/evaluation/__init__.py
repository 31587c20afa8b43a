"""Measure what a model knows, with intervals: questions, generations, perplexity, divergence."""
