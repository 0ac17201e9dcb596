"""A run: a config's parts, the step, the loop, and evaluation."""
