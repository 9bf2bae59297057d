"""Commands that export trained weights: PyTorch files, StableHLO programs, RobustBench entries."""
