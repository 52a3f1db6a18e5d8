"""One structure on many processes: who owns which atoms, and what they send to each other."""
