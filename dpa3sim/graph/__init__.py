"""Neighbour lists and the line graph: the pairs and angles of a structure."""
