"""What a checkpoint says of itself: what was trained, its layout, a digest of each array."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from jaxpar.core.errors import RequestError
from jaxpar.runtime.checkpoint.schema import fault_of

FORMAT = 1
"""Of the checkpoints that this version writes."""


class DamagedCheckpoint(RequestError):
    """A checkpoint that is not whole, or not what was written."""


class OtherFormat(RequestError):
    """A checkpoint that another version of jaxpar wrote, and this one cannot read."""


@dataclass(frozen=True)
class Metadata:
    """What is known of a checkpoint without reading an array.

    Attributes:
        step: updates done.
        model: the model's name.
        layout: strategy, mesh, mode, hardware and the rest that a layout was made of.
        training: the fields of `Training`, where it was trained with one.
        data: its name, fields and where it was read up to.
        metrics: of the last step and the last test that were known.
        versions: of Python, JAX and the packages around it.
        arrays: name -> shape, dtype, PartitionSpec and digest.
        format: of the checkpoint.
    """

    step: int
    model: str
    layout: Mapping[str, Any]
    training: Mapping[str, Any]
    data: Mapping[str, Any]
    metrics: Mapping[str, float]
    versions: Mapping[str, str]
    arrays: Mapping[str, Mapping[str, Any]]
    format: int = FORMAT

    def record(self) -> dict[str, Any]:
        """As JSON has it, with a checksum of itself."""
        own = json.loads(json.dumps(asdict(self)))
        return {**own, "sha256": _checksum(own)}

    @classmethod
    def of(cls, record: Any, where: str) -> "Metadata":
        """The metadata of a JSON record; `where` it was found is said in an error.

        Raises:
            DamagedCheckpoint: when it is not as it was written.
            OtherFormat: when another version wrote it.
        """
        if not isinstance(record, dict) or not isinstance(record.get("sha256"), str):
            raise DamagedCheckpoint(f"checkpoint {where}: its metadata is not jaxpar's")
        own = {name: value for name, value in record.items() if name != "sha256"}
        try:
            is_whole = _checksum(own) == record["sha256"]
        except RecursionError:  # nothing that is written is so deep
            is_whole = False
        if not is_whole:
            raise DamagedCheckpoint(f"checkpoint {where}: its metadata is not what was written")
        form, versions = own.get("format"), own.get("versions")
        if type(form) is int and form != FORMAT:
            by = versions.get("jaxpar", "unknown") if isinstance(versions, dict) else "unknown"
            raise OtherFormat(
                f"checkpoint {where}: it has format {form}, and this version of jaxpar "
                f"reads {FORMAT}: use the version that wrote it, {by}"
            )
        if fault := fault_of(own):
            raise DamagedCheckpoint(f"checkpoint {where}: its metadata is none: {fault}")
        return cls(**own)


def _checksum(record: Mapping[str, Any]) -> str:
    """SHA-256 of a record, whatever the order of its names."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
