"""Attacks, one module each. An attack changes the model, the prompt or the decoder; it never scores."""
