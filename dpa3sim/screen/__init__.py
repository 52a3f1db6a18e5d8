"""Screening: one calculation for each of any number of structures."""
