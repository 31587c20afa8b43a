"""Step 1: score every layer, rank the layers with uncertainty, choose one (eq. 2-7). Only numbers in, no
model.
"""
