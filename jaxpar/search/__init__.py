"""Search: which layout of a model is best on so many devices, by the programs that would run."""
