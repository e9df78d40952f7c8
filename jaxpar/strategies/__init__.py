"""Strategies: which roles go to which mesh axis, and which collectives follow. One file each."""
