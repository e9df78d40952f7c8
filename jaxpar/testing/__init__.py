"""For tests of your own: what jaxpar tests itself with."""
