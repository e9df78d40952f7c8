"""The Finding record: one way in which a program is not what was asked for."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Finding:
    """One way in which the program is not what was asked for.

    Attributes:
        kind: "sharding", "indivisible", "replicated", "rematerialization", "donation", "init",
            "partial sum", "constraint" or "parameter".
        where: the array, or the line of code.
        says: what was asked and what came.
        repair: what to do.
        source: the person's line, "file:line"; "" where there is none.
        module: the module or function that it belongs to; "" where it is not known.
        bytes: per device, that it costs; 0 where it costs none, or they are not known.
        is_error: whether it is a fault; else it is worth knowing, and may be meant.
    """

    kind: str
    where: str
    says: str
    repair: str
    source: str = ""
    module: str = ""
    bytes: int = 0
    is_error: bool = True

    def __str__(self) -> str:
        return f"{self.where}: {self.says}: {self.repair}"

    def record(self) -> dict[str, Any]:
        """It as one JSON-ready dict; `sentence` says all of it."""
        return {**asdict(self), "sentence": str(self)}
