"""Strategies: which roles go to which mesh axis, and what that must say on the wire. One file each."""
