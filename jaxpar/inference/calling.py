"""A person's own code, called: what it raises becomes one sentence with the line that raised it."""

from collections.abc import Callable
from typing import Any

from jaxpar.core.errors import RequestError
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
    except RequestError:
        raise
    except Exception as error:
        at = f" ({line})" if (line := line_of_error(error)) else ""
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise RequestError(
            f"model '{called}': {doing} raised {type(error).__name__}{at}: {first}"
        ) from error
