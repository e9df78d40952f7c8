"""The door: any Flax module, as it is, with its loss and an example batch, becomes a `Model`."""
