"""The command line's options, declared once, and read into plain values.

Flags are absl's, in a set of their own so that a library's flags do not become ours. Every mistake
is a RequestError: one sentence, exit status 2.
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
from jaxpar.core.errors import RequestError, unknown
from jaxpar.hardware.record import XLA

VALUES = flags.FlagValues()
VALUES.set_gnu_getopt(True)

flags.DEFINE_string(
    "strategy",
    "hybrid",
    "how to shard: a name, or names joined by + (fsdp+tensor)",
    flag_values=VALUES,
)
flags.DEFINE_string(
    "mesh",
    None,
    "devices per mesh axis, outermost first: data=4,model=2; auto is the nearest to that of the "
    "run that is resumed",
    flag_values=VALUES,
)
flags.DEFINE_string(
    "hardware",
    "cpu",
    "what to compile for: cpu (simulated CPU devices), local (accelerators of this machine) or "
    "h100 (described, none needed)",
    flag_values=VALUES,
)
flags.DEFINE_string(
    "mode",
    "auto",
    "who places the collectives: auto (XLA), explicit (types) or manual (shard_map)",
    flag_values=VALUES,
)
flags.DEFINE_enum(
    "lint",
    "error",
    ["error", "warn"],
    "what it is if the program does not do what the layout asked for: error or warn",
    flag_values=VALUES,
)
flags.DEFINE_string(
    "data", None, "what to train on: digits, text, or a .bin token file", flag_values=VALUES
)
flags.DEFINE_integer("steps", None, "updates to train for, or steps to verify", flag_values=VALUES)
flags.DEFINE_integer("batch", None, "rows in a global batch", flag_values=VALUES)
flags.DEFINE_integer(
    "microbatches", None, "parts of a batch whose gradients are accumulated", flag_values=VALUES
)
flags.DEFINE_integer("seed", None, "of parameters, batches and dropout", flag_values=VALUES)
flags.DEFINE_integer("rounds", 5, "how often bench alternates its two sides", flag_values=VALUES)
flags.DEFINE_float(
    "minutes", None, "how long a benchmark that does harm goes on", flag_values=VALUES
)
flags.DEFINE_multi_string(
    "set",
    [],
    "field=value of the model, training, optimizer or strategy, or xla.NAME=value for XLA; may be "
    "repeated",
    flag_values=VALUES,
)
flags.DEFINE_integer(
    "processes",
    None,
    "processes to start on this machine, which share the mesh",
    flag_values=VALUES,
)
flags.DEFINE_string(
    "coordinator",
    None,
    "host:port of process 0, for a process of several that is started by hand",
    flag_values=VALUES,
)
flags.DEFINE_integer(
    "process-id", None, "which process of them this is, from 0", flag_values=VALUES
)
flags.DEFINE_integer("process-count", None, "how many processes there are", flag_values=VALUES)
flags.DEFINE_integer(
    "patience",
    30,
    "seconds that one process may be silent, or behind the others, before all are ended",
    flag_values=VALUES,
)
flags.DEFINE_bool(
    "resume", False, "go on from the newest whole checkpoint of the run folder", flag_values=VALUES
)
flags.DEFINE_integer(
    "devices",
    None,
    "how many devices --mesh auto may use (default: all that are here; as many as the run had, "
    "if they are simulated)",
    flag_values=VALUES,
)
flags.DEFINE_string(
    "weights",
    None,
    "an Orbax checkpoint whose weights the run starts from, jaxpar's or any other",
    flag_values=VALUES,
)
flags.DEFINE_string(
    "on-nan",
    None,
    "what becomes of a loss that is no finite number: stop, skip the update, or restore the last "
    "checkpoint and leave out the batches since",
    flag_values=VALUES,
)
flags.DEFINE_string("out", None, "folder for files (default: runs/...)", flag_values=VALUES)
flags.DEFINE_string("picture", None, "save what is shown as an SVG picture", flag_values=VALUES)
flags.DEFINE_bool("json", False, "one JSON record on standard output", flag_values=VALUES)
flags.DEFINE_bool("verify", False, "after training, verify the layout too", flag_values=VALUES)
flags.DEFINE_bool(
    "traceback", False, "show the whole traceback of an error in your own code", flag_values=VALUES
)
flags.DEFINE_bool("help", False, "show this and stop", short_name="h", flag_values=VALUES)


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
    if not equals or not name.removeprefix(XLA).isidentifier():
        raise RequestError(f"--set {text}: write field=value, for example --set layers=2")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            return name, ast.literal_eval(value)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):  # as ast says
        return name, {"true": True, "false": False, "none": None}.get(value.lower(), value)
