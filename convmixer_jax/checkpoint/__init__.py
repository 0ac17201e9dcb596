"""The training state, and its checkpoints."""
