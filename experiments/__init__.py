"""Questions about parallel training, one file each; `jaxpar run NAME` answers one."""
