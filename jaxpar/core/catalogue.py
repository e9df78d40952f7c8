"""A folder is a catalogue, a file in it an entry: list names, read first lines, load one.

An entry is a file that defines the catalogue's noun at its top level, such as `def strategy`; what
else is in the folder serves the entries. Names and summaries are read without importing anything,
so that listing is instant and a broken entry cannot hide its neighbours.
"""

import ast
import importlib
import importlib.util
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from jaxpar.core.errors import unknown


@dataclass(frozen=True)
class Catalogue:
    """The entries of one package: each file exposes the attribute named by `noun`.

    Args:
        package: dotted name of the folder, such as `jaxpar.strategies`.
        noun: what an entry is called, and the name each file gives to its one public thing.
    """

    package: str
    noun: str

    @property
    def folder(self) -> Path:
        """Where the entries lie on disk."""
        spec = importlib.util.find_spec(self.package)
        assert spec is not None and spec.submodule_search_locations, self.package
        return Path(next(iter(spec.submodule_search_locations)))

    def names(self) -> tuple[str, ...]:
        """Entry names, alphabetical."""
        defines = re.compile(rf"^(?:def )?{self.noun}\b *[(=:]", re.MULTILINE)
        files = self.folder.glob("*.py")
        return tuple(sorted(p.stem for p in files if defines.search(p.read_text("utf-8"))))

    def summary(self, name: str) -> str:
        """The first line of the entry's docstring, without importing it."""
        source = (self.folder / f"{name}.py").read_text(encoding="utf-8")
        return (ast.get_docstring(ast.parse(source)) or "").partition("\n")[0]

    def load(self, name: str) -> Callable:
        """Import entry `name` and return its public thing; an unknown name is a `RequestError`."""
        if name not in self.names():
            raise unknown(self.noun, name, self.names())
        return getattr(importlib.import_module(f"{self.package}.{name}"), self.noun)


MODELS = Catalogue("jaxpar.models", "model")
STRATEGIES = Catalogue("jaxpar.strategies", "strategy")
HARDWARE = Catalogue("jaxpar.hardware", "hardware")
SCHEDULES = Catalogue("jaxpar.schedules", "schedule")
EXCHANGES = Catalogue("jaxpar.attention", "exchange")
DATA = Catalogue("jaxpar.data", "dataset")
MODES = Catalogue("jaxpar.step.modes", "mode")
