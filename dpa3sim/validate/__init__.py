"""Cheap physical checks of a model as it is, the same for every model."""
