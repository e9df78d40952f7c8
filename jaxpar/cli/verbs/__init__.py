"""The runner's verbs, one file each."""
