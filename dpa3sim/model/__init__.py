"""DPA3: its options, its weights and the arithmetic that turns graphs into energies."""
