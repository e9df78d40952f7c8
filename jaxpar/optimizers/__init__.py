"""Optimizers: how a gradient becomes an update. One file each."""
