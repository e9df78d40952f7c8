"""What changed from one program to another: collectives, memory, FLOPs, devices, time, sharding.

Read from records alone, so that a program of today is held against a file of last year.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jaxpar.core.errors import RequestError
from jaxpar.core.figures import sizes_text
from jaxpar.report.page import children
from jaxpar.report.section import Record
from jaxpar.report.sections.memory import parts_of

Named = tuple[str, Record]

FIGURES = {
    "devices": ("devices",),
    "rows in a batch": ("batch",),
    "parameters": ("parameters",),
    "parameter bytes per device": ("parameter_bytes_per_device",),
    "communication bytes per step": ("bytes_per_step",),
    "FLOPs per device": ("work", "flops_per_device_per_step"),
    "FLOPs recomputed per device": ("work", "recomputed_flops_per_device_per_step"),
    "least step seconds": ("bounds", "step_seconds"),
    "predicted step seconds": ("step_seconds",),
}
"""What a person calls an entry of a record, and where it is. Bytes of memory stand beside these."""

SETTINGS = ("model", "strategy", "hardware", "mode")


def difference(before: Named, after: Named) -> dict[str, Any]:
    """What changed from one program to another, JSON-ready.

    Args:
        before, after: a name, and the record of an inspection or of whatever has its entries.
    """
    (old_name, old), (new_name, new) = before, after
    figures = [
        {"what": name, "before": a, "after": b}
        for name, a, b in (*_figures(old, new), *_memory(old, new))
    ]
    collectives = list(_collectives(old, new))
    arrays = list(_arrays(old, new))
    changed = [one for one in figures if one["before"] != one["after"]]
    return {
        "before": old_name,
        "after": new_name,
        "same": not (changed or collectives or arrays),
        "figures": figures,
        "collectives": collectives,
        "arrays": arrays,
    }


def differences(
    before: tuple[str, Sequence[Record]], after: tuple[str, Sequence[Record]]
) -> list[dict[str, Any]]:
    """What changed from one file to another: its only program, or each that has the same name.

    Args:
        before, after: a file's name, and its records.

    Raises:
        RequestError: where there are no two programs to hold against each other.
    """
    (old_file, old), (new_file, new) = ((name, dict(_programs(r))) for name, r in (before, after))
    for name, found in ((old_file, old), (new_file, new)):
        if not found:
            raise RequestError(f"{name}: there is no program in it: inspect --json writes one")
    if len(old) == len(new) == 1:
        (a,), (b,) = old.items(), new.items()
        names = (a[0], b[0]) if a[0] != b[0] else (f"{old_file}: {a[0]}", f"{new_file}: {b[0]}")
        return [difference((names[0], a[1]), (names[1], b[1]))]
    both = [name for name in old if name in new]
    if not both:
        raise RequestError(
            f"no program of {old_file} has the name of one of {new_file}: {', '.join(old)}, and "
            f"{', '.join(new)}"
        )
    return [
        difference((f"{old_file}: {name}", old[name]), (f"{new_file}: {name}", new[name]))
        for name in both
    ]


def _programs(records: Sequence[Record]) -> Iterator[Named]:
    """Every program of some records, by its name."""
    for record in records:
        if "collectives" in record:
            mesh = record.get("mesh")
            sizes = sizes_text(mesh) if isinstance(mesh, Mapping) else mesh
            yield f"{record.get('model')} {record.get('strategy')}@{sizes}", record
        yield from children(record)


def _entry(record: Record, where: Sequence[str]) -> Any:
    """What is at a place of nested records, or None."""
    value: Any = record
    for name in where:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _figures(old: Record, new: Record) -> Iterator[tuple[str, Any, Any]]:
    """Settings that differ, then figures that either has."""
    for name in SETTINGS:
        if name in old and name in new and old[name] != new[name]:
            yield name, str(old[name]), str(new[name])
    for name, where in FIGURES.items():
        a, b = _entry(old, where), _entry(new, where)
        if isinstance(a, int | float) or isinstance(b, int | float):
            yield name, a, b


def _memory(old: Record, new: Record) -> Iterator[tuple[str, Any, Any]]:
    """Bytes of memory that either needs: the whole, then its parts."""
    a, b = (_bytes(record.get("memory") or {}) for record in (old, new))
    for name in {**a, **b}:
        yield f"memory per device: {name} bytes", a.get(name), b.get(name)


def _bytes(memory: Mapping[str, Any]) -> dict[str, float]:
    """Bytes by a person's names, the whole first."""
    whole = {name: memory.get(f"{name}_bytes") for name in ("peak", "total")}
    return {name: size for name, size in whole.items() if size} | parts_of(memory)


def _collectives(old: Record, new: Record) -> Iterator[dict[str, Any]]:
    """Kinds of collectives that were added, are gone, or changed in count or bytes."""
    a, b = _summed(old), _summed(new)
    for key in {**a, **b}:
        before, after = a.get(key), b.get(key)
        if before == after:
            continue
        kind, of, axes = key
        change = "gone" if after is None else "added" if before is None else "changed"
        yield {
            "change": change,
            "kind": kind,
            "of": of,
            "axes": list(axes),
            "before": before,
            "after": after,
        }


def _summed(record: Record) -> dict[tuple, dict[str, float]]:
    """Count and bytes of collectives by kind, what they are of, and axes."""
    sums: dict[tuple, dict[str, float]] = {}
    # `traffic` has a row a kind, where `collectives` are explained one by one.
    rows = record.get("traffic") or record.get("collectives", ())
    for row in (*rows, *(record.get("averaging_collectives") or ())):
        key = (row["kind"], row.get("of"), tuple(row["axes"]))
        one = sums.setdefault(key, {"count": 0, "bytes": 0})
        one["count"] += row["count"]
        one["bytes"] += row["bytes"]
    return sums


def _arrays(old: Record, new: Record) -> Iterator[dict[str, Any]]:
    """Arrays that one of them has not, or that are sharded otherwise."""
    a, b = ({x["path"]: x for x in record.get("arrays", ())} for record in (old, new))
    for path in {**a, **b}:
        before, after = (_sharding(x.get(path)) for x in (a, b))
        if before != after:
            yield {"path": path, "before": before, "after": after}


def _sharding(array: Mapping[str, Any] | None) -> str | None:
    """How an array is sharded, in words."""
    if array is None:
        return None
    pairs = zip(array["dims"], array["spec"], strict=True)
    found = [f"{dim} over {' x '.join(axes)}" for dim, axes in pairs if axes]
    return ", ".join(found) or "replicated"
