"""A row of what is explained alike: the bytes, counts and names of its collectives put together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jaxpar.hlo.collectives import Collective
from jaxpar.hlo.parts import Part
from jaxpar.measures.explain.record import Explained


def row_of(members: Sequence[tuple[Part, Collective]], **told: Any) -> Explained:
    """The row of these parts of collectives.

    Args:
        members: each with the collective that carries it.
        told: the other fields of the row, which all of them have alike.
    """
    return Explained(
        bytes=round(sum(one.executions * part.bytes_each for part, one in members)),
        count=round(sum(one.executions for _, one in members)),
        operations=tuple(dict.fromkeys(one.name for _, one in members)),
        **told,
    )
