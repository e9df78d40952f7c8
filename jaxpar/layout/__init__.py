"""Layout: a model, a strategy and a mesh shape become a PartitionSpec for every array."""
