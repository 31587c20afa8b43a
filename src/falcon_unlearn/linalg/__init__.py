"""Statistics without models: PCA, entropies, mutual information, intervals. `intervals` needs no torch."""
