"""Benchmarks: ratios taken side by side in one process, since a machine's speed drifts."""
