"""Structures from files, which are read as what they mean or refused with the reason."""
