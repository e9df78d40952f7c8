"""Strategies: which roles go to which mesh axis, and what that says on the wire. One file each."""
