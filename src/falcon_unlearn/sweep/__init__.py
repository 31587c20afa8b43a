"""Many runs over methods, layers, seeds and any setting, through an engine that others keep."""
