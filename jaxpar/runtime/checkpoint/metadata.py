"""What a checkpoint says of itself: what was trained, its layout, a digest of each array."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from jaxpar.core.errors import RequestError

FORMAT = 1
"""Of the checkpoints that this version writes."""


class DamagedCheckpoint(RequestError):
    """A checkpoint that is not whole, or not what was written."""


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
    extra: Mapping[str, Any] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """As JSON has it, with a checksum of itself."""
        own = json.loads(json.dumps(asdict(self)))
        return {**own, "sha256": _checksum(own)}

    @classmethod
    def of(cls, record: Any, where: str) -> "Metadata":
        """The metadata of a JSON record; `where` it was found is said in an error.

        Raises:
            DamagedCheckpoint: when it is not as it was written.
            RequestError: when a later version wrote it.
        """
        if not isinstance(record, dict) or "sha256" not in record or "format" not in record:
            raise DamagedCheckpoint(f"checkpoint {where}: its metadata is not jaxpar's")
        own = {name: value for name, value in record.items() if name != "sha256"}
        if _checksum(own) != record["sha256"]:
            raise DamagedCheckpoint(f"checkpoint {where}: its metadata is not what was written")
        if own["format"] != FORMAT:
            raise RequestError(
                f"checkpoint {where}: it has format {own['format']}, and this version of jaxpar "
                f"reads {FORMAT}: use the version that wrote it, "
                f"{own.get('versions', {}).get('jaxpar', 'unknown')}"
            )
        return cls(**own)


def _checksum(record: Mapping[str, Any]) -> str:
    """SHA-256 of a record, whatever the order of its names."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
