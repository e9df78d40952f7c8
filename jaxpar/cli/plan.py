"""A plan's file, which `search` writes, as options: its layout and what it has set."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from jaxpar.cli.options import Options
from jaxpar.core.errors import RequestError, words_of
from jaxpar.search.outcome import PLAN

MOST_BYTES = 1 << 20
_WORDS = ("model", "strategy", "mesh", "mode", "hardware")
_READERS = ("predict", "inspect")
"""Verbs that run nothing, and so read the program for the hardware of the plan."""


def planned(options: Options) -> Options:
    """The options with those of the plan, where nothing else was typed.

    Raises:
        RequestError: the file is no plan, or is for another model than the one that was typed.
    """
    plan = read_plan(Path(options.plan))
    verb, *words = options.words
    if words and words[0] != plan["model"]:
        raise RequestError(
            f"--plan {options.plan} is for {plan['model']}, and {words[0]} was typed: leave it out"
        )
    typed = {text.partition("=")[0].strip() for text in options.values["set"]}
    typed |= {name for name in ("batch", "microbatches", "steps", "seed") if name in options.given}
    fields = [f"{name}={value}" for name, value in plan["set"].items() if name not in typed]
    taken = _WORDS[1:] if verb in _READERS else _WORDS[1:-1]
    values = {name: plan[name] for name in taken if name not in options.given}
    return replace(
        options,
        words=(verb, plan["model"]),
        values={**options.values, **values, "set": [*fields, *options.values["set"]]},
        given=(*options.given, *values, "set"),
    )


def read_plan(path: Path) -> Mapping[str, Any]:
    """The record of a plan's file.

    Raises:
        RequestError: when there is none, or it is not one that this version reads.
    """
    try:
        if not path.is_file() or path.stat().st_size > MOST_BYTES:
            raise ValueError("there is no such file, or it is no regular file of a fair size")
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RequestError(f"--plan {path}: cannot read it ({words_of(error)})") from error
    form = record.get("plan") if isinstance(record, dict) else None
    if type(form) is not type(PLAN) or form != PLAN:  # to Python, True is the number 1
        raise RequestError(
            f"--plan {path}: it is no plan of this version ({PLAN}): let search write it"
        )
    for name in _WORDS:
        if not isinstance(word := record.get(name), str) or not word.strip():
            raise RequestError(f"--plan {path}: its {name} is no word: let search write it")
    fields = record.get("set")
    plain = isinstance(fields, dict) and all(
        name.isprintable() and isinstance(value, bool | int | float | str | None)
        for name, value in fields.items()
    )
    if not plain:
        raise RequestError(f"--plan {path}: its set is no record of fields: let search write it")
    return record
