"""Models that nobody wrote for jaxpar: plain Flax, no names, no seams. One family a file."""
