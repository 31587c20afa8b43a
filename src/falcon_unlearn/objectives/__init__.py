"""The losses of FALCON and the targets they push states towards."""
