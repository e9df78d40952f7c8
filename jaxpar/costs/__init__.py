"""What a compiled program costs on a device: seconds of each instruction, and of a whole step."""
