"""What `--help` prints: every verb, one verb's options, or what `--set` changes of a model."""

import inspect
import re
import shutil
import textwrap
from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields
from typing import Any

from jaxpar.cli import options as command_line
from jaxpar.cli.options import Options
from jaxpar.core.catalogue import OPTIMIZERS, STRATEGIES, Catalogue
from jaxpar.core.errors import unknown

VERBS = Catalogue("jaxpar.cli.verbs", "verb")
"""A file each, which says in `TAKES` what words follow it (in brackets where one may be left out,
with ... where more may follow) and in `READS` which options it reads beside those that all share.
"""


def show_help(program: str, options: Options) -> None:
    """Print what is asked for: all verbs; with a verb its options; with a model its fields too."""
    if not options.words:
        _print_all(program)
        return
    name, *words = options.words
    if name not in VERBS.names():
        raise unknown("verb", name, VERBS.names())
    reads = (*VERBS.constant(name, "READS"), *command_line.SHARED)
    groups = list(_groups(words[0], options)) if words and "set" in reads else []
    called = f"{program} {name} {VERBS.constant(name, 'TAKES')}".rstrip()
    print(f"{called} [options]\n\n{_folded('', VERBS.summary(name), 0)}\n\noptions")
    _print_options(option for option in command_line.names() if option in reads)
    for title, defaults, told in groups:
        print(f"\n--set, {title}")
        for field, usual in defaults.items():
            print(_folded(f"{field}={usual}", told.get(field, ""), 26))
    if "set" in reads and not groups:
        print(f"\n{program} {name} mlp --help: also the fields that --set changes of mlp")


def _print_all(program: str) -> None:
    """Print the verbs with their first lines, and every option."""
    print(f"{program} VERB ... [options]\n")
    for name in VERBS.names():
        print(_folded(f"{name} {VERBS.constant(name, 'TAKES')}", VERBS.summary(name), 16))
    print(f"\noptions ({program} VERB --help: those that it reads)")
    _print_options(command_line.names())


def _print_options(names: Iterable[str]) -> None:
    """Print each option as typed, with its help."""
    for typed, text in command_line.help_lines(names):
        print(_folded(typed, text, 26))


def _groups(model: str, options: Options) -> Iterator[tuple[str, dict[str, Any], dict[str, str]]]:
    """What `--set` changes, in groups: a title, the usual values by name, and a line on each.

    A model's own fields, training's, and the options of the optimizer and strategies in force.
    """
    from jaxpar.case import load_model, optimizer_options, strategy_options
    from jaxpar.runtime.training import Training
    from jaxpar.strategies.record import parts

    config, training = load_model(model).config, Training()
    if config is not None:
        yield f"model {model}", _values(config), field_lines(type(config))
    yield "training", _values(training), field_lines(Training)
    rule = options.changes.get("optimizer", training.optimizer)
    made = OPTIMIZERS.load(rule)
    yield f"optimizer {rule}", optimizer_options(rule), field_lines(made)
    for name in parts(options.strategy):
        if usual := strategy_options(name):
            yield f"strategy {name}", usual, field_lines(STRATEGIES.load(name))


def _values(record: Any) -> dict[str, Any]:
    """The fields of a record, each with its value."""
    return {field.name: getattr(record, field.name) for field in fields(record)}


def field_lines(documented: Callable[..., Any]) -> dict[str, str]:
    """What a docstring says of each argument or attribute; of a class, its bases' too.

    >>> def area(width, height):
    ...     '''A rectangle's.
    ...
    ...     Args:
    ...         width, height: its sides,
    ...             in metres.
    ...     '''
    >>> field_lines(area)
    {'width': 'its sides, in metres', 'height': 'its sides, in metres'}
    """
    told: dict[str, str] = {}
    owners = reversed(documented.__mro__) if isinstance(documented, type) else [documented]
    for owner in owners:
        text = inspect.cleandoc(owner.__doc__ or "")
        listed = re.search(r"^(?:Args|Attributes):\n((?:    .*\n?|\n)*)", text, re.MULTILINE)
        for entry in re.split(r"\n(?=    \S)", listed[1] if listed else ""):
            names, colon, meaning = entry.partition(":")
            if colon:
                line = " ".join(meaning.split()).removesuffix(".")
                told |= dict.fromkeys((name.strip() for name in names.split(",")), line)
    return told


def _folded(head: str, text: str, wide: int) -> str:
    """A head and a text beside it, no wider than the terminal, or below it if the head is long."""
    columns = max(60, shutil.get_terminal_size().columns)
    first = f"  {head:<{wide}} " if len(head) <= wide else f"  {head}\n  {'':<{wide}} "
    rest = "  " if not head else " " * (wide + 3)
    if not head:
        first = "  "
    lines = textwrap.wrap(text, columns - len(rest), break_on_hyphens=False) or [""]
    return (first + f"\n{rest}".join(lines)).rstrip()
