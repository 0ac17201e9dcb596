"""Training and evaluation: building the parts of a run, the training step, and the loop."""
