"""A folder is a catalogue, a file in it an entry: list names, read first lines, load one.

An entry is a file that defines the catalogue's noun at its top level, such as `def strategy`, or a
folder whose `__init__.py` does; what else is in the folder serves the entries. Names and summaries
are read without importing anything, so that listing is instant and a broken entry cannot hide its
neighbours.
"""

import ast
import importlib
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jaxpar.core.errors import unknown


@dataclass(frozen=True)
class Catalogue:
    """The entries of one package: each file (or folder) exposes the attribute named by `noun`.

    Args:
        package: dotted name of the folder, such as `jaxpar.strategies`.
        noun: what an entry is called, and the name each file gives to its one public thing.
    """

    package: str
    noun: str

    @property
    def title(self) -> str:
        """The folder's own name, such as `strategies`."""
        return self.package.rpartition(".")[2]

    @property
    def folder(self) -> Path:
        """Where the entries lie on disk."""
        spec = importlib.util.find_spec(self.package)
        assert spec is not None and spec.submodule_search_locations, self.package
        return Path(next(iter(spec.submodule_search_locations)))

    def names(self) -> tuple[str, ...]:
        """Entry names, alphabetical."""
        return tuple(
            sorted(
                name
                for name, file in self._files()
                if self.noun in _defined(file, file.stat().st_mtime_ns)
            )
        )

    def summary(self, name: str) -> str:
        """The first line of the entry's docstring, without importing it."""
        source = dict(self._files())[name].read_text(encoding="utf-8")
        return (ast.get_docstring(ast.parse(source)) or "").partition("\n")[0]

    def _files(self) -> Iterator[tuple[str, Path]]:
        """Every file that could be an entry, with the name that it would have."""
        yield from ((path.stem, path) for path in self.folder.glob("*.py"))
        yield from ((path.parent.name, path) for path in self.folder.glob("*/__init__.py"))

    def load(self, name: str) -> Any:
        """Import entry `name` and return its public thing; an unknown name is a `RequestError`."""
        if name not in self.names():
            raise unknown(self.noun, name, self.names())
        return getattr(importlib.import_module(f"{self.package}.{name}"), self.noun)


@cache
def _defined(file: Path, changed: int) -> frozenset[str]:
    """The functions and values that a file defines at its top level, by name.

    `changed` is when the file was changed last, so that it is read again when it was.
    """
    del changed
    names = set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef):
            names.add(node.name)
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return frozenset(names)


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
