"""Training and evaluation, the same for every model."""
