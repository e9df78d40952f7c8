"""The program: jaxpar VERB ..., or from the repository python -m experiments VERB ...

Exit status 0 when all is well, 1 when a check or claim failed, 2 when the request makes no sense,
130 when it was stopped by Ctrl-C.
"""

import os
import sys
from pathlib import Path

from absl import logging

from jaxpar.cli import options as command_line
from jaxpar.cli.help import VERBS, show_help
from jaxpar.core.errors import RequestError, unknown


def main() -> int:
    """Run what was typed after `jaxpar`; returns the exit status."""
    return execute(sys.argv[1:], program="jaxpar")


def execute(argv: list[str], *, program: str) -> int:
    """Run one command line and return its exit status.

    Args:
        argv: the words after the program's name.
        program: how it was started, which messages and hints repeat.
    """
    logging.use_absl_handler()
    try:
        options = command_line.parse(argv, program)
        if options.help or not options.words:
            show_help(program, options)
            return 0
        name, *words = options.words
        if name not in VERBS.names():
            raise unknown("verb", name, VERBS.names())
        _check_words(name, words, program)
        _check_options(name, options)
        _keep_compiled_programs()
        return _run(name, argv, command_line.Options(tuple(words), options.values, program))
    except RequestError as error:
        print(f"{program}: {error}", file=sys.stderr)
        return 2


def _check_words(name: str, words: list[str], program: str) -> None:
    """Refuse too few or too many words after a verb."""
    takes = VERBS.constant(name, "TAKES")
    named = takes.split()
    if len(words) < sum(word.isalpha() for word in named):
        like = takes if "..." in named else f"{takes} ..."
        raise RequestError(f"'{name}' needs a {takes}: {program} {name} {like}")
    if len(words) > len(named) and "..." not in named:
        most = f"one {takes.strip('[]')}" if takes else "no name"
        raise RequestError(
            f"'{name}' takes {most}, and got {' '.join(words)}: options start with --"
        )


def _check_options(name: str, options: command_line.Options) -> None:
    """Refuse an option that the verb does not read: who typed it means something by it."""
    reads = VERBS.constant(name, "READS")
    for option in options.given:
        if option not in reads and option not in command_line.SHARED:
            by = ", ".join(v for v in VERBS.names() if option in VERBS.constant(v, "READS"))
            raise RequestError(f"'{name}' does not read --{option}, as {by} does: leave it out")


def _run(name: str, argv: list[str], options: command_line.Options) -> int:
    """Load a verb and run it; what it or a person's model prints stays out of a JSON record."""
    from jaxpar.cli.screen import Screen
    from jaxpar.program.configuration import prefer_cpu

    if options.hardware != "local" and (name != "doctor" or options.words):
        prefer_cpu()
    screen = Screen(options.json, pictured=options.picture is not None)
    try:
        with screen.alone():
            status = VERBS.load(name)(options, screen)
    except KeyboardInterrupt:
        kept = [str(path) for path in screen.files if path.exists()]
        print(f"{options.program}: stopped; kept: {', '.join(kept) or 'nothing'}", file=sys.stderr)
        return 130
    if options.picture:
        typed = [word for word in argv if word not in ("--picture", options.picture)]
        screen.picture(Path(options.picture), f"{options.program} {' '.join(typed)}")
    return status


def _keep_compiled_programs() -> None:
    """Keep what XLA compiles in the user's cache folder, so that a second run starts in seconds."""
    import jax

    if os.environ.get("JAX_COMPILATION_CACHE_DIR") is None:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(home / "jaxpar" / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
