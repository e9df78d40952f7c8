"""Questions about parallel training, one file each, and the runner that answers them."""
