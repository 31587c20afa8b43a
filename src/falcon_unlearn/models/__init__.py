"""Load language models, find their parts, run blocks of them, turn text into tokens."""
