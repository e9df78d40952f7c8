"""The command `jaxpar` from its first moment, when JAX is not imported yet.

That takes a second, in which a signal would end in a traceback; JAX refuses some variables of the
environment by one; and a file that is opened meanwhile would get the number of a standard stream
that is closed. The package imports JAX, so this stands outside of it and imports neither.
"""

import os
import signal
import sys
from contextlib import suppress


def main(program: str = "jaxpar") -> int:
    """Run the command that was typed; returns its exit status.

    Args:
        program: how it was started, which messages repeat.
    """

    def stop(number, frame):
        word = "stopped" if number == signal.SIGINT else "terminated"
        with suppress(OSError):
            os.write(2, f"{program}: {word}; kept: nothing\n".encode())
        os._exit(128 + number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free
    try:
        import jax  # noqa: F401  (so that what it refuses is told apart from what we do)
    except ValueError as error:
        return _refused(program, error, "unset it")
    except (ImportError, RuntimeError) as error:  # RuntimeError: a jaxlib of another version
        return _refused(program, error, "pip install jaxpar brings it; python -S leaves it out")
    from jaxpar.cli.main import main as run

    return run(program)


def _refused(program: str, error: Exception, repair: str) -> int:
    """Tell why JAX cannot be imported; returns the exit status."""
    said = " ".join(str(error).split())[:500]
    with suppress(OSError):
        os.write(2, f"{program}: JAX cannot be imported ({said}): {repair}\n".encode())
    return 2


if __name__ == "__main__":
    sys.exit(main())
