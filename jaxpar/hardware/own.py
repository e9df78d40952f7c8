"""Hardware of one's own: the catalogue's with some figures told otherwise, one by one or in a file.

`--set hardware.network_bytes_per_second=25e9` changes one figure. A file, `--hardware NAME.json`,
says what it is like and which figures differ:

    {"like": "h100", "name": "our_cluster", "source": "ib_write_bw, 2026-11",
     "figures": {"network_bytes_per_second": 25e9, "devices_per_node": 4}}

`calibrate` writes such a file, with tables of its own under "measured"; and one with "here": the
devices of this machine, whose programs run, with what was measured of their speed.
"""

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from jaxpar.core.catalogue import HARDWARE
from jaxpar.core.errors import RequestError, unknown, words_of
from jaxpar.core.kinds import LEAST_FLOAT, MOST_FLOAT
from jaxpar.hardware.measured import check_tables
from jaxpar.hardware.record import Hardware, Rates, Reached

PREFIX = "hardware."
"""What the names of hardware's figures begin with among the fields of a case."""

ALIKE = {"nic_bytes_per_second": "network_bytes_per_second"}
"""Other words for the same figures."""

ENTRIES = ("like", "name", "source", "figures", "measured", "here")
"""What a file may hold."""

HERE = ("local", "cpu")
"""The devices that "here" may name, as the catalogue does."""

PEAK = "flops_per_second"
"""The peak in bfloat16; those of other dtypes are changed by the same factor."""

OWN = ("devices_per_node", "memory_bytes")
SHARES = ("products", "sustained", "memory", "usable")
LONGER = ("crowding", "slowest")
"""Figures that are whole numbers; that are shares of another; by which work takes longer."""

MOST_BYTES_OF_FILE = 1 << 20


def _figures(kind: type) -> tuple[str, ...]:
    """The fields of a record that are single numbers."""
    return tuple(one.name for one in fields(kind) if one.type in (float, "float"))


FIGURES = (*OWN, PEAK, *_figures(Rates), *_figures(Reached))
"""The names of figures that can be told."""


def hardware_of(named: str) -> Hardware:
    """The hardware of a name in the catalogue, or of a file that ends in .json.

    Raises:
        RequestError: there is none of the name, or the file cannot be read, or says nothing known.
    """
    if not named.endswith(".json"):
        return HARDWARE.load(named)()
    record = _read(Path(named))
    like = record.get("like")
    if not isinstance(like, str) or like.endswith(".json"):
        raise RequestError(
            f'{named}: say what this hardware is like, such as "like": "h100" (there are: '
            f"{', '.join(HARDWARE.names())})"
        )
    stray = [name for name in record if name not in ENTRIES]
    if stray:
        raise unknown(f"entry of {named}", stray[0], ENTRIES)
    told = record.get("figures", {})
    if not isinstance(told, dict):
        raise RequestError(f"{named}: figures is a {type(told).__name__}: give numbers by name")
    base = HARDWARE.load(like)()
    words = {"name": Path(named).stem, "source": base.source}
    words |= {name: record[name] for name in words if name in record}
    for name, word in words.items():
        if not isinstance(word, str) or not word.isprintable() or not 0 < len(word.strip()) <= 400:
            raise RequestError(f"{named}: {name} is no line of text")
    made = replace(with_figures(base, told, f"{named}: "), **words)
    if "here" in record:
        if record["here"] not in HERE:
            raise unknown(f"here of {named}", record["here"], HERE)
        own = HARDWARE.load(record["here"])()
        made = replace(own, name=made.name, source=made.source, rates=made.rates,
                       reached=made.reached)  # fmt: skip
    if "measured" not in record or made.reached is None:
        return made
    tables = str(Path(named).absolute())
    try:
        check_tables(tables)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise RequestError(
            f"{named}: its measured tables cannot be read ({words_of(error)}): let calibrate write "
            "the file"
        ) from error
    return replace(made, reached=replace(made.reached, tables=tables))


def is_local(named: str) -> bool:
    """Whether hardware of this name, or file, is this machine's accelerators; not whether there are
    any, or whether the file can be read."""
    with suppress(RequestError):
        return named == "local" or (named.endswith(".json") and hardware_of(named).kind == "local")
    return False


def with_figures(
    hardware: Hardware, told: Mapping[str, Any], where: str = f"--set {PREFIX}"
) -> Hardware:
    """Hardware with figures told otherwise.

    Args:
        hardware: whose other figures stay.
        told: by name, one of `FIGURES`.
        where: what to put before a name in a sentence.

    Raises:
        RequestError: for an unknown name, a figure that is no number above 0, or hardware whose
            speed is not known.
    """
    rates, reached = hardware.rates, hardware.reached
    for name, value in told.items():
        name = ALIKE.get(name, name)
        if name not in FIGURES:
            raise unknown("figure of hardware", name, (*FIGURES, *ALIKE))
        number = _told(name, value, where)
        if name in OWN:
            hardware = replace(hardware, **{name: number})
        elif rates is None or reached is None:
            raise RequestError(
                f"{where}{name}={value}: hardware '{hardware.name}' has no speed to change; use "
                "described hardware, such as h100"
            )
        elif name == PEAK:
            factor = number / rates.flops_per_second["bfloat16"]
            peaks = {dtype: factor * peak for dtype, peak in rates.flops_per_second.items()}
            rates = replace(rates, flops_per_second=peaks)
        elif name in _figures(Rates):
            rates = replace(rates, **{name: float(number)})
        else:
            reached = replace(reached, **{name: float(number)})
    return replace(hardware, rates=rates, reached=reached)


def _told(name: str, value: Any, where: str) -> int | float:
    """A figure's number, a whole one where it counts; RequestError for one that none can be."""
    number = None if isinstance(value, bool) or not isinstance(value, int | float) else value
    if number is None or not LEAST_FLOAT <= number <= MOST_FLOAT:
        raise RequestError(f"{where}{name}={value}: give a number above 0")
    if name in OWN:
        if number != int(number):
            raise RequestError(f"{where}{name}={value}: give a whole number")
        return int(number)
    if name in SHARES and number > 1:
        raise RequestError(
            f"{where}{name}={value}: it is a share: give a number above 0, at most 1"
        )
    if name in LONGER and number < 1:
        raise RequestError(
            f"{where}{name}={value}: it says how many times longer work takes: give 1 or more"
        )
    return number


def _read(path: Path) -> dict[str, Any]:
    """The record of a file."""
    try:
        if not path.is_file() or path.stat().st_size > MOST_BYTES_OF_FILE:
            raise ValueError("there is no such file, or it is no regular file of a fair size")
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RequestError(f"--hardware {path}: cannot read it ({words_of(error)})") from error
    if not isinstance(record, dict):
        raise RequestError(f"--hardware {path}: it holds no record: begin it with {{")
    return record
