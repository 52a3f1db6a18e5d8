"""One small module for each command, imported when it runs."""
