"""Training: the step, the loop around it, the state it moves, checkpoints and health."""
