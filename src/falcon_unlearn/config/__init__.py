"""Settings: declared once, merged from files, environment and flags, explained in words."""
