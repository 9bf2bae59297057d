"""PyTorch checkpoints in and out: state_dicts of the public classes."""
