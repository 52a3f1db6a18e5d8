"""Training and fine-tuning: from files of structures with labels to the weights of a model."""
