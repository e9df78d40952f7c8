"""A person's own code, called: what it raises becomes one sentence with the line that raised it."""

from collections.abc import Callable
from typing import Any

from jaxpar.core.errors import RequestError, words_of
from jaxpar.core.source_lines import line_of_error


def trying(called: str, doing: str, function: Callable[[], Any]) -> Any:
    """Call `function`; a RequestError passes, anything else is made one.

    Args:
        called: the model's name.
        doing: what is being done, as the subject of "raised".
        function: a person's code.
    """
    try:
        return function()
    except (RequestError, KeyboardInterrupt):
        raise
    except BaseException as error:  # whatever it is, exit() too
        raise RequestError(f"model '{called}': {doing} raised {told(error)}") from error


def told(error: BaseException) -> str:
    """An exception in words: its type, the line of a person's code that raised it, what it says."""
    at = f" ({line})" if (line := line_of_error(error)) else ""
    return f"{type(error).__name__}{at}: {words_of(error)}"
