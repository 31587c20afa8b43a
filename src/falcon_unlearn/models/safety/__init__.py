"""Check model files before a library reads them: the outcome is a value or an error, whatever they hold."""
