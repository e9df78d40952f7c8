"""The command line: options, what is shown, and a verb a file."""
