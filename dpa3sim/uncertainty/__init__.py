"""How far structures are from what a model was fitted to, and which of them to label."""
