"""How jaxpar says no: one plain sentence with the place, the value met, the rule and the repair.

`RequestError` is what a person can cause by what they type; the runner prints its sentence and
exits with status 2. `LayoutError` is the request that cannot be laid out on devices. Anything else
that is raised is a bug of jaxpar's own and keeps its traceback.
"""

import difflib
from collections.abc import Iterable


class RequestError(ValueError):
    """What was asked for makes no sense; the sentence says why and what to type instead."""


class LayoutError(RequestError):
    """The arrays cannot be sharded as asked: a dim that does not divide, or an axis used twice."""


def unknown(noun: str, name: str, known: Iterable[str]) -> RequestError:
    """The refusal of a name that does not exist, with the nearest name that does.

    >>> print(unknown("strategy", "tensr", ["data", "fsdp", "tensor"]))
    unknown strategy 'tensr': did you mean 'tensor'? (there are: data, fsdp, tensor)
    """
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean '{near[0]}'? " if near else ""
    more = f" and {len(known) - 20} more" if len(known) > 20 else ""
    there = f"there are: {', '.join(known[:20])}{more}"
    return RequestError(f"unknown {noun} '{name}': {hint}" + (f"({there})" if near else there))


def sizes_that_work(size: int, wanted: int) -> str:
    """Which counts near `wanted` divide `size`, and which sizes near `size` `wanted` divides.

    >>> sizes_that_work(60, 8)
    '6 or 10 devices divide it, and 8 divides 56 and 64'
    """
    divisors = [d for d in range(1, size + 1) if size % d == 0]
    below = max((d for d in divisors if d < wanted), default=None)
    above = min((d for d in divisors if d > wanted), default=None)
    fitting = [str(d) for d in (below, above) if d is not None]
    multiple = size // wanted * wanted
    sizes = [str(m) for m in (multiple, multiple + wanted) if m > 0]
    devices = " or ".join(fitting) + (
        " devices divide it" if fitting[-1] != "1" else " device fits"
    )
    return f"{devices}, and {wanted} divides {' and '.join(sizes)}"
