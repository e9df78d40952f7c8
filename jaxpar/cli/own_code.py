"""An error in a person's own code: a sentence, and for whoever asks the whole traceback."""

import traceback

from jaxpar.cli.flags import VALUES
from jaxpar.core.errors import OwnCodeError
from jaxpar.core.source_lines import passed_own_code


def sentence_of(error: BaseException) -> str:
    """The sentence about an error that a person's own code raised; "" for one of ours.

    A loss is called again after the door, to evaluate it or to verify a layout, and may raise then.
    """
    from jaxpar.inference.calling import told

    if not passed_own_code(error):
        return ""
    try:
        raise OwnCodeError(f"your own code raised {told(error)}") from error
    except OwnCodeError as own:
        return f"{own}{more_of(own)}"


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
