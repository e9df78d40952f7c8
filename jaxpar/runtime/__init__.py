"""Runtime: what runs a compiled program: training and evaluation."""
