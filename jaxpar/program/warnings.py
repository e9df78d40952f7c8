"""What XLA warns of while it compiles: in C++, on standard error, of no line of anyone's code.

Its partitioner replicates an array where it knows no better way from one sharding to another, and
says so in a log line. Here the line is read, given the line of Python that it is about, and kept
beside the compiled program, so that a program from JAX's cache is known for what it is.
"""

import hashlib
import json
import os
import re
import secrets
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from jaxpar.core.jax_compat import setting
from jaxpar.core.source_lines import own_file
from jaxpar.hlo.frames import frames_of
from jaxpar.program.standard_error import warnings_kept

_REMATERIALIZED = re.compile(
    r"Involuntary full rematerialization\. The compiler (?:cannot|was not able to) go from "
    r"sharding (?P<before>\{.*?\}) to (?P<after>\{.*?\}) (?:efficiently|without)"
    r".*?HLO operation %?(?P<name>[\w.\-]+) = (?P<shape>\w+\[[\d,]*\])"
    r"(?P<rest>.*)"
)
_OP_NAME = re.compile(r'op_name="([^"]*)"')
_FRAME = re.compile(r"stack_frame_id=(\d+)")
_FILE = re.compile(r'source_file="([^"]*)" source_line=(\d+)')


@dataclass(frozen=True)
class XlaWarning:
    """An array that XLA replicates on every device to change its sharding.

    Attributes:
        array: its type and local shape, as XLA writes it.
        from_sharding, to_sharding: the sharding that it has and the one that it gets, as XLA
            writes them.
        op_name: the JAX operation that it comes from.
        frame_id: of the line that asked for it, in the table of the program that was compiled then;
            0 for none.
        source: that line, or "" where it is not known.
    """

    array: str
    from_sharding: str
    to_sharding: str
    op_name: str
    frame_id: int
    source: str = ""


def read_warnings(text: str) -> tuple[XlaWarning, ...]:
    """Find the warnings in what XLA wrote, each once.

    >>> said = '''[SPMD] Involuntary full rematerialization. The compiler cannot go from sharding
    ... {devices=[2,1]<=[2]} to {devices=[1,2]<=[2]} efficiently for HLO operation %copy.1 =
    ... f32[8,4]{1,0} copy(%a), metadata={op_name="jit(f)/dot" stack_frame_id=4}.'''
    >>> read_warnings(said.replace("\\n", " "))[0].array
    'f32[8,4]'
    """
    found = []
    for line in text.splitlines():
        if match := _REMATERIALIZED.search(line):
            name, frame, file = (p.search(match["rest"]) for p in (_OP_NAME, _FRAME, _FILE))
            found.append(
                XlaWarning(
                    match["shape"],
                    match["before"],
                    match["after"],
                    name[1] if name else "",
                    int(frame[1]) if frame else 0,
                    f"{file[1]}:{file[2]}" if file else "",
                )
            )
    return tuple(dict.fromkeys(found))


def compile_with_warnings(
    lowered: Any, compile_it: Callable[[], Any]
) -> tuple[Any, tuple[XlaWarning, ...]]:
    """Compile, and return also what XLA warned of, now or when it compiled the same program before.

    Args:
        lowered: what is compiled.
        compile_it: compiles it.
    """
    file = _kept_in(lowered)
    before = () if file is None else _before(file)
    with warnings_kept() as lines:
        compiled = compile_it()
    now = read_warnings("\n".join(lines))
    if now:
        # A program from the cache numbers its lines otherwise: look them up while it is new.
        program = compiled.as_text()
        now = tuple(replace(w, source=w.source or _line(program, w.frame_id)) for w in now)
    warnings = tuple(dict.fromkeys((*before, *now)))
    if file is not None and warnings != before:
        _keep(file, json.dumps([asdict(w) for w in warnings]))
    return compiled, warnings


def compile_quietly(compile_it: Callable[[], Any]) -> Any:
    """Compile a program beside the update, such as an evaluation, and drop XLA's warnings: they
    repeat the update's."""
    with warnings_kept():
        return compile_it()


def _line(program: str, frame_id: int) -> str:
    """The person's line that a compiled program's text knows by this number, or ""."""
    frames = frames_of(program, frame_id) if frame_id else ()
    at = own_file(frame.file for frame in frames)
    return "" if at is None else f"{frames[at].file}:{frames[at].line}"


def _kept_in(lowered: Any) -> Path | None:
    """Where this program's warnings are, if JAX keeps compiled programs on this disk."""
    folder = setting("jax_compilation_cache_dir")
    if not folder or "://" in folder:
        return None
    digest = hashlib.sha256(lowered.as_text().encode()).hexdigest()
    return Path(folder) / "warnings" / f"{digest}.json"


def _before(file: Path) -> tuple[XlaWarning, ...]:
    """The warnings in a file; none where it is not there or was damaged."""
    try:
        return tuple(XlaWarning(**w) for w in json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return ()


def _keep(file: Path, text: str) -> None:
    """Write a file at once, since another process may read it now; as JAX, not where it cannot."""
    unfinished = file.with_suffix(f".{secrets.token_hex(4)}")
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_text(text, encoding="utf-8")
        os.replace(unfinished, file)
