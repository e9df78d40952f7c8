"""The command jaxpar, started from its repository: python -m experiments VERB ..."""

import sys

from jaxpar.cli.main import execute

if __name__ == "__main__":
    sys.exit(execute(sys.argv[1:], program="python -m experiments"))
