"""A folder is a catalogue, a file in it an entry: list names, read first lines, load one.

An entry is a file that defines the catalogue's noun at its top level, such as `def strategy`, or a
folder whose `__init__.py` does; what else is in the folder serves the entries. Entries that differ
in numbers alone are rows of one file, which defines a table by the noun's plural:

    models = {"llama3_8b": make("a line for a list", ...), ...}

where a row is a call whose first argument is its summary, and is then called as `row(name, ...)`.
Names and summaries are read without importing anything, so that listing is instant and a broken
entry cannot hide its neighbours.
"""

import ast
import importlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

from jaxpar.core.errors import unknown


@dataclass(frozen=True)
class Catalogue:
    """The entries of one package.

    Args:
        package: dotted name of the folder, such as `jaxpar.strategies`.
        noun: what an entry is called, and the name that each file gives to its one public thing.
    """

    package: str
    noun: str

    @property
    def title(self) -> str:
        """The folder's own name, such as `strategies`."""
        return self.package.rpartition(".")[2]

    @property
    def folder(self) -> Path:
        """The folder of the entries."""
        spec = importlib.util.find_spec(self.package)
        assert spec is not None and spec.submodule_search_locations, self.package
        return Path(next(iter(spec.submodule_search_locations)))

    def names(self) -> tuple[str, ...]:
        """Entry names, alphabetical."""
        return tuple(sorted(self._entries()))

    def summary(self, name: str) -> str:
        """The first line of the entry's docstring, or of its row, without importing it."""
        return self._entries()[name].summary

    def constant(self, name: str, key: str) -> Any:
        """What the entry's file says `key` is at its top level, a literal; nothing is imported."""
        return self._entries()[name].constants[key]

    def load(self, name: str) -> Any:
        """Import entry `name` and return its public thing; an unknown name is a `RequestError`."""
        entries = self._entries()
        if not isinstance(name, str) or name not in entries:
            raise unknown(self.noun, name, self.names())
        module = importlib.import_module(f"{self.package}.{entries[name].file}")
        if entries[name].is_row:
            return partial(getattr(module, f"{self.noun}s")[name], name)
        return getattr(module, self.noun)

    def _entries(self) -> dict[str, "_Entry"]:
        """Every entry by name."""
        files = ((path.stem, path) for path in self.folder.glob("*.py"))
        folders = ((path.parent.name, path) for path in self.folder.glob("*/__init__.py"))
        entries: dict[str, _Entry] = {}
        for file, path in (*files, *folders):
            for name, entry in _defined(path, path.stat().st_mtime_ns, file, self.noun).items():
                assert name not in entries, f"{self.package}: two entries are called '{name}'"
                entries[name] = entry
        return entries


@dataclass(frozen=True)
class _Entry:
    """Where an entry is defined, `is_row` in a table of several, and its line for a list.

    `constants` are the literals that its file names in capitals.
    """

    file: str
    summary: str
    is_row: bool = False
    constants: Mapping[str, Any] = field(default_factory=dict)


@cache
def _defined(path: Path, changed: int, file: str, noun: str) -> dict[str, _Entry]:
    """The entries of one file: itself if it defines `noun`, and the rows of a table `{noun}s`.

    `changed` is when the file was changed last, so that it is read again when it was.
    """
    del changed
    tree = ast.parse(path.read_text(encoding="utf-8"))
    entries, constants = {}, {}
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        names = {target.id for target in targets if isinstance(target, ast.Name)}
        if noun in names or (isinstance(node, ast.FunctionDef) and node.name == noun):
            summary = (ast.get_docstring(tree) or "").partition("\n")[0]
            entries[file] = _Entry(file, summary, constants=constants)
        if isinstance(node, ast.Assign) and all(name.isupper() for name in names):
            constants |= _literal(node.value, names)
        table = node.value if isinstance(node, ast.Assign | ast.AnnAssign) else None
        if f"{noun}s" in names and isinstance(table, ast.Dict):
            for key, row in zip(table.keys, table.values, strict=True):
                assert isinstance(key, ast.Constant) and isinstance(row, ast.Call), path
                title = ast.literal_eval(row.args[0])
                entries[str(key.value)] = _Entry(file, title, is_row=True)
    return entries


def _literal(value: ast.expr, names: set[str]) -> dict[str, Any]:
    """A literal under each name; nothing for what is computed."""
    try:
        return dict.fromkeys(names, ast.literal_eval(value))
    except ValueError:
        return {}


MODELS = Catalogue("jaxpar.models", "model")
STRATEGIES = Catalogue("jaxpar.strategies", "strategy")
SCHEDULES = Catalogue("jaxpar.schedules", "schedule")
OPTIMIZERS = Catalogue("jaxpar.optimizers", "optimizer")
MEASURES = Catalogue("jaxpar.measures", "measure")
HARDWARE = Catalogue("jaxpar.hardware", "hardware")
DATA = Catalogue("jaxpar.data", "dataset")
MODES = Catalogue("jaxpar.step.modes", "mode")
EXCHANGES = Catalogue("jaxpar.attention", "exchange")
CATALOGUES = (MODELS, STRATEGIES, SCHEDULES, MODES, OPTIMIZERS, MEASURES, HARDWARE, DATA, EXCHANGES)
"""All there are, in the order in which a person is shown them."""
