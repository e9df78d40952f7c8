"""A process that compiles layouts for a search: cases in, predictions out, a JSON line each.

Started by `jaxpar.search.compiled` as `python -m jaxpar.search.worker`. What libraries or a model's
own code print goes to standard error.
"""

import json
import os
import sys
from typing import Any

from jaxpar.case import Case
from jaxpar.core.errors import RequestError, one_line
from jaxpar.measures.predict import predict


def answer(words: dict[str, Any]) -> dict[str, Any]:
    """The record of a case's prediction; {"refusal": a sentence} where there is no program."""
    try:
        program = Case(**words).resolve().compile(for_speed=False)
        return predict(program, explains=False).record()
    except RequestError as refusal:
        return {"refusal": str(refusal)}
    except Exception as error:  # of a model's own code or of XLA: one layout less, not the search
        return {"refusal": one_line(f"{type(error).__name__}: {error}")[:300]}


def main() -> None:
    """Answer every line until there are no more."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    for line in sys.stdin:
        out.write(json.dumps(answer(json.loads(line))) + "\n")
        out.flush()


if __name__ == "__main__":
    main()
