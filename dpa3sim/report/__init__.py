"""Pages that people read: a run directory, or a screening, as one HTML file."""
