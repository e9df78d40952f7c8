"""Models that nobody wrote for jaxpar: plain Flax, no names, no hooks. One family a file."""
