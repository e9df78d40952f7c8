"""A person's own code, called: what it raises becomes one sentence with the line that raised it."""

import traceback
from collections.abc import Callable
from typing import Any

from jaxpar.core.errors import RequestError


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
        frames = [f for f in traceback.extract_tb(error.__traceback__) if _is_theirs(f.filename)]
        at = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise RequestError(
            f"model '{called}': {doing} raised {type(error).__name__}{at}: {first}"
        ) from error


def _is_theirs(filename: str) -> bool:
    ours = ("/jaxpar/", "/site-packages/", "/jax/", "/flax/", "<")
    return not any(part in filename for part in ours)
