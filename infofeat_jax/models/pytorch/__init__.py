"""Reading and writing PyTorch checkpoints: state_dicts of the public classes."""
