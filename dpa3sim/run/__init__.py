"""Run directories: where a command keeps its results, its state and what it was."""
