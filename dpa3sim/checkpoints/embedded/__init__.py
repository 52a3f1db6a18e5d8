"""The embedded default model; see MODEL_CARD.md."""
