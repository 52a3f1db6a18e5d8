"""What follows from third-order force constants: lifetimes of phonons, conduction of heat."""
