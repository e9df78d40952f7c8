"""A section of the page is a file here: what it reads of a record it draws, else nothing."""
