"""Structures from files: what people have, read as what it is, or refused with the reason."""
