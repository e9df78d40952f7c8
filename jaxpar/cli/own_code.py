"""An error in a person's own code: a sentence, and for whoever asks the whole traceback."""

import traceback

from jaxpar.cli.options import VALUES
from jaxpar.core.errors import OwnCodeError


def more_of(error: BaseException) -> str:
    """What to put behind an error's sentence: "" unless a person's own code raised it.

    With `--traceback`, what it raised is printed on standard error, else how to see it is returned.
    """
    own: BaseException | None = error
    while own is not None and not isinstance(own, OwnCodeError):
        own = own.__cause__
    if own is None or own.__cause__ is None:
        return ""
    if not VALUES["traceback"].value:
        return "; --traceback shows where"
    traceback.print_exception(own.__cause__)
    return ""
