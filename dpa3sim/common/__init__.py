"""What all rooms share: errors, files, settings, units, elements, durations."""
