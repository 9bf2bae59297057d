"""Commands that carry trained weights elsewhere: PyTorch files, StableHLO programs, RobustBench entries."""
