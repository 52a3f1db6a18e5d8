"""Clients of the model: ASE, i-PI, LAMMPS, and the engine that many of them share."""
