"""Clients of the model: ASE, i-PI, LAMMPS, and the engine that many clients can share."""
