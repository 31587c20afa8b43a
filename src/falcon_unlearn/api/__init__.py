"""The Python interface: a trainer in the manner of TRL, its settings, and a function for layer selection."""
