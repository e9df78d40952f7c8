"""Modes: how a traced loss becomes gradients on a mesh. One file each."""
