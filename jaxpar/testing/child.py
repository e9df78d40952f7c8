"""One process of a test: joins the others, runs the function, and writes down what it returns."""

from __future__ import annotations

import importlib
import json
import os
import sys
import traceback
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from jaxpar.core.errors import RequestError
from jaxpar.core.progress import here
from jaxpar.program.configuration import prefer_cpu, simulate_devices
from jaxpar.runtime.distributed import Place, join
from jaxpar.runtime.supervise import parent_of_all


def main(asked: dict[str, Any]) -> int:
    """Run what is asked for; returns the exit status.

    Args:
        asked: `function` as module:name, its `arguments`, the file for its `result`, the number of
            `devices`, this process's `number` of `count`, the `coordinator`, and `patience`.
    """
    prefer_cpu()
    simulate_devices(asked["devices"])
    place = Place(asked["number"], asked["count"], asked["coordinator"], parent=parent_of_all())
    alone = nullcontext()
    joined = join(place, program="test", patience_seconds=asked["patience"])
    try:
        with joined if place.count > 1 else alone:
            module, _, name = asked["function"].partition(":")
            function = getattr(importlib.import_module(module), name)
            here.at(f"in {name}", may_last=True)
            result = json.dumps(function(*asked["arguments"]))
    except RequestError as error:
        print(f"test: {place}: {error}", file=sys.stderr)
        return 2
    except BaseException:
        traceback.print_exc()
        return 1
    Path(asked["result"]).write_text(result, encoding="utf-8")
    return 0


if __name__ == "__main__":
    status = main(json.loads(sys.argv[1]))
    sys.stdout.flush()
    sys.stderr.flush()
    if status:
        os._exit(status)  # JAX would wait for the other processes
    sys.exit(0)
