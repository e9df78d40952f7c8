"""Checkpoints: written while training goes on, whole or not there, restored under any layout."""
