"""Neighbour lists and the line graph: which pairs and which angles a structure has."""
