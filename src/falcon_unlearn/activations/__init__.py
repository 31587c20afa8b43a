"""Keep hidden states of many samples on disk, and pool them."""
