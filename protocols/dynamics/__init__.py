"""What protocols of dynamics share: integrators, recorders, statistics, trajectories."""
