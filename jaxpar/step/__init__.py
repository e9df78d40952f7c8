"""Step: a layout's training step as pure functions, traced and not yet compiled."""
