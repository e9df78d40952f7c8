"""The repository: experiments and benchmarks are its files, and are not installed with jaxpar."""

import sys
import tomllib
from pathlib import Path

from jaxpar.core.catalogue import Catalogue
from jaxpar.core.errors import RequestError


def root() -> Path | None:
    """The folder of jaxpar's repository, or None where there is none.

    That is the current folder, or the one that this package is imported from.
    """
    for place in (Path(), Path(__file__).parents[2]):
        try:
            folder = place.resolve()  # OSError for a folder that was deleted
            project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError):
            continue
        named = project.get("project", {}).get("name") == "jaxpar"
        if named and (folder / "experiments" / "__init__.py").is_file():
            return folder
    return None


def experiments() -> Catalogue:
    """The questions that `run` answers; a RequestError away from the repository."""
    return _of_repository("experiments", "experiment")


def benchmarks() -> Catalogue:
    """What `bench` measures; a RequestError away from the repository."""
    return _of_repository("experiments.benchmarks", "benchmark")


def _of_repository(package: str, noun: str) -> Catalogue:
    """A catalogue of the repository, which comes before any other package of that name."""
    folder = root()
    if folder is None:
        raise RequestError(
            f"a {noun} is a file of jaxpar's repository, which the installed package is without: "
            "clone the repository and start this in its folder"
        )
    if sys.path[:1] != [str(folder)]:
        sys.path.insert(0, str(folder))
    return Catalogue(package, noun)
