"""The command jaxpar, started from its repository: python -m experiments VERB ..."""

import sys

from jaxpar_command import main

if __name__ == "__main__":
    sys.exit(main("python -m experiments"))
