"""Models: Flax modules whose every dim has a name and a role. One file each; sizes are rows."""
