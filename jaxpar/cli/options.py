"""The command line's options, read into plain values.

Every mistake is a RequestError: one sentence, exit status 2.
"""

import ast
import os
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from absl import flags

from jaxpar.case import Case
from jaxpar.cli.flags import VALUES
from jaxpar.core.errors import RequestError, unknown
from jaxpar.hardware.own import PREFIX
from jaxpar.hardware.record import XLA

SHARED = ("picture", "json", "traceback", "help")
"""Options that every verb reads."""


@dataclass(frozen=True)
class Options:
    """What was typed: the positional words, every option by name, and how it was started.

    `given` are the options that were typed; the others have their usual values. `typed` are all
    words after the program's name, as they were typed.
    """

    words: tuple[str, ...]
    values: dict[str, Any]
    program: str
    given: tuple[str, ...] = ()
    typed: tuple[str, ...] = ()

    def __getattr__(self, name: str) -> Any:
        try:
            return self.values[name]
        except KeyError:
            raise AttributeError(name) from None

    @property
    def changes(self) -> dict[str, Any]:
        """The `--set` pairs, with `--steps` and `--seed` and their like beside them."""
        said = [_pair(text) for text in self.values["set"]]
        for option in ("steps", "seed", "batch", "microbatches", "on-nan"):
            if self.values[option] is not None:
                said.append((option.replace("-", "_"), self.values[option]))
        for name, _ in said:
            if [other for other, _ in said].count(name) > 1:
                raise RequestError(f"{name} is set twice: say it once")
        return dict(said)

    @property
    def device_count(self) -> int | None:
        """The number that `--devices` says; None where it is not given."""
        if self.values["devices"] is None:
            return None
        try:
            return int(self.values["devices"])
        except ValueError:
            raise RequestError(
                f"--devices {self.values['devices']}: give a whole number of devices"
            ) from None

    @property
    def case(self) -> Case:
        """The case that was asked for; the first word is the model."""
        return Case(
            self.words[0],
            strategy=self.strategy,
            mesh=self.mesh,
            hardware=self.hardware,
            mode=self.mode,
            data=self.data,
            set=self.changes,
        )

    def file(self, usual: str, name: str) -> Path:
        """A file in the folder where files go, refused now if it could not be written later.

        Nothing is made yet: a request that is refused for another reason leaves nothing behind.

        Args:
            usual: the folder under runs/ where none is asked for.
            name: of the file.
        """
        file = Path(self.out or f"runs/{usual}") / name
        check_writable(file, "--out")
        return file


def make_folder(file: Path) -> None:
    """Make the folder of a file that is about to be written."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RequestError(f"{file.parent}: cannot make this folder ({error.strerror})") from error


def check_picture(picture: str, out: str | None) -> None:
    """Refuse a place where no picture could be saved, or the name of another kind of picture.

    Args:
        picture: the file.
        out: the folder of the command's other files, if it was said: no part of it is a picture.
    """
    if Path(picture).suffix.lower() != ".svg":
        raise RequestError(f"--picture {picture}: pictures are SVG: name a file that ends in .svg")
    check_writable(Path(picture), "--picture")
    folder = Path(out or "").absolute()
    if out and Path(picture).absolute() in (folder, *folder.parents):
        raise RequestError(f"--picture {picture} is --out's folder too: name another file")


FILES = ("plan", "hardware", "data", "weights", "timeline", "picture", "report")
"""Options that name a file which is read, or one that is written."""


def check_files(options: Options) -> None:
    """Refuse one file in two options: what is written second would be all that is left of it."""
    seen: dict[str, str] = {}
    for name in FILES:
        if name not in options.given or "\0" in (file := str(options.values[name])):
            continue
        other = seen.setdefault(os.path.realpath(file), name)
        if other != name:
            raise RequestError(f"--{other} and --{name} are both {file}: name two different files")


def check_auto(options: Options) -> None:
    """Refuse `--mesh auto` where no run is resumed whose mesh is to be kept as far as it can be."""
    if not options.resume:
        raise RequestError(
            "--mesh auto is the mesh nearest to that of the run that is resumed: say --resume, "
            "or a mesh such as data=4,model=2"
        )


def check_writable(file: Path, option: str) -> None:
    """Refuse a file that cannot be written: a folder, a device, or on a disk that is full.

    Args:
        file: it need not be there, nor its folders.
        option: that named it, or its folder.
    """
    try:
        fault = _fault_of(file)
    except (OSError, ValueError) as error:  # too long a name, a loop of links, a zero byte
        fault = getattr(error, "strerror", None) or str(error)
    if fault:
        raise RequestError(f"{option} {file}: cannot write there ({fault}); name another place")


def _fault_of(file: Path) -> str:
    """Why a file cannot be written, "" if it can; OSError for what the system says of it."""
    if "\0" in str(file):
        return "its name holds a zero byte"
    if file.is_symlink() and not file.exists():
        return "it is a link that leads nowhere"
    if file.exists() and not file.is_file():
        return "it is a folder" if file.is_dir() else "it is no regular file"
    folder = file.absolute().parent
    while not folder.exists() and not folder.is_symlink():
        folder = folder.parent
    if not folder.is_dir():
        return f"{folder} is no folder"
    if not os.access(file if file.exists() else folder, os.W_OK):
        return "permission denied"
    if not os.statvfs(folder).f_bavail:
        return "no space left on device"
    return ""


def parse(argv: list[str], program: str) -> Options:
    """Read the words after the program's name; an unknown or malformed option is refused."""
    VALUES.unparse_flags()
    _refuse_absls_own(argv)
    try:
        _, *words = VALUES([program, *argv])
    except flags.UnrecognizedFlagError as error:
        refusal = unknown("option", f"--{error.flagname}", [f"--{n}" for n in names()])
        raise RequestError(
            f"{refusal}; fields of the model or of training are said with --set field=value"
        ) from None
    except flags.IllegalFlagValueError as error:
        # absl: "flag --steps=abc: invalid literal for int() with base 10: 'abc'"
        typed = str(error).removeprefix("flag ").partition(":")[0]
        flag = VALUES[typed.removeprefix("--").partition("=")[0]]
        if isinstance(flag, flags.BooleanFlag):
            raise RequestError(f"{typed}: this option takes no value: say --{flag.name}") from None
        kind = "a whole number: " if isinstance(flag.parser, flags.IntegerParser) else ""
        raise RequestError(
            f"{typed}: not a value of this option, which is {kind}{flag.help}"
        ) from None
    except (flags.Error, ValueError) as error:  # ValueError: --nojson=3
        raise RequestError(f"{error}; --help shows what it takes") from None
    _refuse_twice()
    values = {name: VALUES[name].value for name in names()}
    return Options(tuple(words), values, program, tuple(n for n in names() if VALUES[n].present))


def _refuse_absls_own(argv: list[str]) -> None:
    """Refuse the two options that absl takes by itself: one reads options from a file, one hides
    unknown ones."""
    for word in argv[: argv.index("--") if "--" in argv else None]:
        name = word.lstrip("-").partition("=")[0]
        if word.startswith("-") and name in ("flagfile", "undefok"):
            raise unknown("option", f"--{name}", [f"--{n}" for n in names()])


def _refuse_twice() -> None:
    """Refuse an option that says nothing, or is typed twice and may not be: absl takes the last."""
    for name in names():
        flag = VALUES[name]
        if flag.present > 1 and not isinstance(flag, flags.MultiFlag):
            raise RequestError(f"--{name} is given {flag.present} times: say it once")
        if flag.present and isinstance(flag.value, str) and not flag.value.strip():
            raise RequestError(f"--{name} is empty: give it a value, or leave it out")


def names() -> tuple[str, ...]:
    """Every option's name, in order of declaration."""
    return tuple(name for name in VALUES if len(name) > 1)


def help_lines(names: Iterable[str]) -> list[tuple[str, str]]:
    """Each option as typed, and its help."""
    lines = []
    for name in names:
        flag = VALUES[name]
        typed = f"--{name}" if isinstance(flag, flags.BooleanFlag) else f"--{name} {name.upper()}"
        default = "" if flag.default in (None, False, []) else f" [{flag.default}]"
        # absl adds to what it was given: "<error|warn>: ...", "...;\n repeat this option ..."
        text = flag.help.partition(";\n")[0].rpartition(">: ")[2]
        lines.append((typed, f"{text}{default}"))
    return lines


def _pair(text: str) -> tuple[str, Any]:
    """The name and the value of `field=value`: a Python literal, else a word."""
    name, equals, value = (part.strip() for part in text.partition("="))
    if not equals or not name.removeprefix(XLA).removeprefix(PREFIX).isidentifier():
        raise RequestError(f"--set {text}: write field=value, for example --set layers=2")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            return name, ast.literal_eval(value)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):  # as ast says
        return name, {"true": True, "false": False, "none": None}.get(value.lower(), value)
