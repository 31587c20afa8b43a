"""Several processes working on one run: who is who, what they sum, and how they fail together."""
