"""What protocols of harmonic lattices share: force constants, Hessians, bands, Born charges."""
