"""Hardware: where a step is compiled, be it here, or described and far away. One file each."""
