"""What XLA complains of while it compiles: said on standard error by C++, and else heard by nobody.

Its partitioner replicates an array whole where it knows no better way from one sharding to another,
and says so in a log line that names no line of anyone's code. Here the line is caught, read, and
kept beside the compiled program, so that a program from JAX's cache is known for what it is.
"""

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import jax

from jaxpar.hlo.parse import frames_of

_REMATERIALIZED = re.compile(
    r"Involuntary full rematerialization\. The compiler (?:cannot|was not able to) go from "
    r"sharding (?P<held>\{.*?\}) to (?P<wanted>\{.*?\}) (?:efficiently|without)"
    r".*?HLO operation %?(?P<name>[\w.\-]+) = (?P<shape>\w+\[[\d,]*\])"
    r"(?P<rest>.*)"
)
_OP_NAME = re.compile(r'op_name="([^"]*)"')
_FRAME = re.compile(r"stack_frame_id=(\d+)")
_FILE = re.compile(r'source_file="([^"]*)" source_line=(\d+)')


@dataclass(frozen=True)
class Complaint:
    """An array that XLA replicated whole to lay it out anew.

    Attributes:
        array: its type and local shape, as XLA writes it.
        held, wanted: the shardings it went from and to, as XLA writes them.
        op_name: the JAX operation that it comes from.
        frame_id: of the line that asked for it, in the table of the program that was compiled then;
            0 for none.
        source: that line, or "" where it is not known.
    """

    array: str
    held: str
    wanted: str
    op_name: str
    frame_id: int
    source: str = ""


def read_complaints(text: str) -> tuple[Complaint, ...]:
    """Find the complaints in what was said on standard error.

    >>> said = '''[SPMD] Involuntary full rematerialization. The compiler cannot go from sharding
    ... {devices=[2,1]<=[2]} to {devices=[1,2]<=[2]} efficiently for HLO operation %copy.1 =
    ... f32[8,4]{1,0} copy(%a), metadata={op_name="jit(f)/dot" stack_frame_id=4}.'''
    >>> read_complaints(said.replace("\\n", " "))[0].array
    'f32[8,4]'
    """
    found = []
    for line in text.splitlines():
        if match := _REMATERIALIZED.search(line):
            name, frame, file = (p.search(match["rest"]) for p in (_OP_NAME, _FRAME, _FILE))
            found.append(
                Complaint(
                    match["shape"],
                    match["held"],
                    match["wanted"],
                    name[1] if name else "",
                    int(frame[1]) if frame else 0,
                    f"{file[1]}:{file[2]}" if file else "",
                )
            )
    return tuple(dict.fromkeys(found))


def compile_listening(
    lowered: Any, compile_it: Callable[[], Any]
) -> tuple[Any, tuple[Complaint, ...]]:
    """Compile, and say what XLA complained of now or when it compiled the same program before.

    Args:
        lowered: what is compiled.
        compile_it: compiles it.
    """
    kept = _kept(lowered)
    if kept is not None and kept.is_file():
        before = tuple(Complaint(**c) for c in json.loads(kept.read_text(encoding="utf-8")))
    else:
        before = ()
    compiled, text = _overheard(compile_it)
    now = read_complaints(text)
    if now:
        # A program from the cache numbers its lines otherwise: look them up while it is new.
        program = compiled.as_text()
        now = tuple(replace(c, source=c.source or _line(program, c.frame_id)) for c in now)
    said = tuple(dict.fromkeys((*before, *now)))
    if kept is not None and said != before:
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps([asdict(c) for c in said]), encoding="utf-8")
    return compiled, said


def compile_quietly(compile_it: Callable[[], Any]) -> Any:
    """Compile what is made beside an update, of which XLA would only say the same again."""
    return _overheard(compile_it)[0]


def _line(program: str, frame_id: int) -> str:
    frames = frames_of(program, frame_id) if frame_id else ()
    return f"{frames[0].file}:{frames[0].line}" if frames else ""


def _kept(lowered: Any) -> Path | None:
    """Where the complaints about this program lie, if JAX keeps compiled programs on this disk."""
    folder = jax.config.jax_compilation_cache_dir
    if not folder or "://" in folder:
        return None
    digest = hashlib.sha256(lowered.as_text().encode()).hexdigest()
    return Path(folder) / "complaints" / f"{digest}.json"


def _overheard(function: Callable[[], Any]) -> tuple[Any, str]:
    """Call a function, and return also what it wrote to standard error, which still gets the rest.

    The complaints themselves are not passed on: they are told in a person's words instead.
    """
    try:
        outside = os.dup(2)
    except OSError:  # there is no standard error
        return function(), ""
    with tempfile.TemporaryFile() as heard:
        os.dup2(heard.fileno(), 2)
        try:
            result = function()
        finally:
            os.dup2(outside, 2)
            heard.seek(0)
            text = heard.read().decode(errors="replace")
            rest = "".join(
                line for line in text.splitlines(keepends=True) if not _REMATERIALIZED.search(line)
            )
            os.write(outside, rest.encode())
            os.close(outside)
    return result, text
