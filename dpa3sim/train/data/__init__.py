"""Training data: frames with labels from files of many formats, checked and held as arrays."""
