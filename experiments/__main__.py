"""The runner: python -m experiments VERB ...

`list` shows what there is; `train`, `inspect` and `verify` take a model; `run` walks one
experiment. Exit status 0 when all is well, 1 when a check or claim failed, 2 when the request
makes no sense.
"""

import os
import sys
from pathlib import Path

from absl import logging

from jaxpar.cli import options as command_line
from jaxpar.core.catalogue import Catalogue
from jaxpar.core.errors import RequestError, unknown

VERBS = Catalogue("jaxpar.cli.verbs", "verb")
TAKES = {"train": "MODEL", "inspect": "MODEL", "verify": "MODEL", "run": "NAME", "bench": "NAME"}
"""What a verb wants after it."""
MAY_TAKE = {"doctor": "MODEL"}
"""What a verb can do with, and without."""


def main(argv: list[str]) -> int:
    """Run one command line and return its exit status."""
    logging.use_absl_handler()
    try:
        options = command_line.parse(argv)
        if options.help or not options.words:
            return _help()
        name, *words = options.words
        if name not in VERBS.names():
            raise unknown("verb", name, VERBS.names())
        wanted = TAKES.get(name)
        most = 1 if wanted or name in MAY_TAKE else 0
        if wanted and not words:
            raise RequestError(
                f"'{name}' needs a {wanted}: python -m experiments {name} {wanted} ..."
            )
        if len(words) > most:
            takes = f"one {wanted or MAY_TAKE[name]}" if most else "no name"
            raise RequestError(
                f"'{name}' takes {takes}, and got {' '.join(words)}: options start with --"
            )
        _keep_compiled_programs()
        return _run(name, command_line.Options(tuple(words), options.values))
    except RequestError as error:
        print(f"experiments: {error}", file=sys.stderr)
        return 2


def _run(name: str, options: command_line.Options) -> int:
    from jaxpar.cli.screen import Screen
    from jaxpar.program.configuration import prefer_cpu

    if options.hardware != "local" and (name != "doctor" or options.words):
        prefer_cpu()
    screen = Screen(options.json, pictured=options.picture is not None)
    status = VERBS.load(name)(options, screen)
    if options.picture:
        typed = [word for word in sys.argv[1:] if word != "--picture" and word != options.picture]
        screen.picture(Path(options.picture), f"python -m experiments {' '.join(typed)}")
    return status


def _help() -> int:
    print("python -m experiments VERB ... [options]\n")
    for name in VERBS.names():
        takes = TAKES.get(name) or (f"[{MAY_TAKE[name]}]" if name in MAY_TAKE else "")
        print(f"  {name + ' ' + takes:<16} {VERBS.summary(name)}")
    print("\noptions")
    for typed, text in command_line.help_lines():
        print(f"  {typed:<26} {text}")
    return 0


def _keep_compiled_programs() -> None:
    """Keep what XLA compiles in the user's cache folder, so that a second run starts in seconds."""
    import jax

    if os.environ.get("JAX_COMPILATION_CACHE_DIR") is None:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(home / "jaxpar" / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
