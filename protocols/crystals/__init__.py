"""What protocols of crystals share: cells, preparation, guards, supercells, symmetry."""
