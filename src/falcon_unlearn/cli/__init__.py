"""The command line: parse, choose a sink, call the pipeline lazily, turn failures into exit codes."""
