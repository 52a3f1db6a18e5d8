"""Reports: one HTML file about a run directory or a screening."""
