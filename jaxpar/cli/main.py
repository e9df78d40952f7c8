"""The program: jaxpar VERB ..., or from the repository python -m experiments VERB ...

Exit status 0 when all is well, 1 when a check or claim failed, 2 when the request makes no sense,
130 when it was stopped by Ctrl-C, 143 by SIGTERM, 141 when nobody reads its output any more.
"""

import os
import shlex
import sys
import traceback
from contextlib import suppress
from logging import LogRecord
from pathlib import Path

from absl import flags as absl_flags
from absl import logging

from jaxpar.cli import options as command_line
from jaxpar.cli.environment import cache_folder, check_environment
from jaxpar.cli.help import VERBS, show_help
from jaxpar.cli.own_code import more_of, sentence_of
from jaxpar.cli.pages import check_page, save_page
from jaxpar.cli.processes import ProcessFailed, run_here, starts_several, taking_part
from jaxpar.cli.stopping import STOPPED, stoppable, word_of
from jaxpar.cli.streams import READER_GONE, prepare_streams, written
from jaxpar.core.errors import RequestError, unknown
from jaxpar.report.records import completed, stamped


def main(program: str = "jaxpar") -> int:
    """Run what was typed after the program's name; returns the exit status, unless it was stopped.

    A process that is stopped, ran out of memory, leaves others behind or could not save ends here:
    XLA's threads may be at work still, and Python would wait for them, or take down under them what
    they use.
    """
    try:
        status = execute(sys.argv[1:], program=program)
    except BaseException:
        if not _is_abandoned():
            raise
        traceback.print_exc()
        status = 1
    if status in STOPPED.values() or _ran_out() or _is_abandoned() or _left_waiting():
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        os._exit(status)
    return status


def _is_abandoned() -> bool:
    """Whether this was one of several processes, and does not end with the others."""
    if "jaxpar.runtime.distributed" not in sys.modules:
        return False
    from jaxpar.runtime.distributed import is_abandoned

    return is_abandoned()


def _left_waiting() -> bool:
    """Whether threads may wait long for a checkpoint that could not be written."""
    if "jaxpar.runtime.checkpoint.quiet" not in sys.modules:
        return False
    from jaxpar.runtime.checkpoint.quiet import left_waiting

    return left_waiting.is_set()


def _ran_out() -> bool:
    """Whether a program ran out of memory, if one ran."""
    from jaxpar.program.out_of_memory import ran_out

    return ran_out.is_set()


def execute(argv: list[str], *, program: str) -> int:
    """Run one command line and return its exit status.

    Args:
        argv: the words after the program's name.
        program: how it was started, which messages and hints repeat.
    """
    logging.use_absl_handler()
    absl_flags.FLAGS.mark_as_parsed()  # else a first line says that they are not
    logging.get_absl_logger().addFilter(_is_told)
    files: list[Path] = []

    def stopped(word: str) -> None:
        kept = [str(path) for path in files if os.path.exists(path)]
        _tell(f"{program}: {word}; kept: {', '.join(kept) or 'nothing'}")

    with stoppable(stopped):
        try:
            prepare_streams()
            with written():
                return _obey(argv, program, files)
        except RequestError as error:
            _tell(f"{program}: {error}{more_of(error)}")
            return 2
        except BrokenPipeError:
            return READER_GONE
        except KeyboardInterrupt as error:
            word = word_of(error)
            stopped(word)
            return STOPPED[word]
        except (Exception, SystemExit) as error:  # a person's own, or a bug, which is shown whole
            if not (sentence := sentence_of(error)):
                raise
            _tell(f"{program}: {sentence}")
            return 2


def _is_told(record: LogRecord) -> bool:
    """Whether a line of a log is for a person: Orbax's errors are told as a sentence of ours."""
    return f"{os.sep}orbax{os.sep}" not in record.pathname


def _tell(line: str) -> None:
    """Print a line on standard error, if that can be written."""
    with suppress(OSError):
        print(line, file=sys.stderr, flush=True)


def _obey(argv: list[str], program: str, files: list[Path]) -> int:
    """Run one command line; `files` becomes what it writes to disk."""
    options = command_line.parse(argv, program)
    if options.help or not options.words:
        show_help(program, options)
        return 0
    name, *words = options.words
    if name not in VERBS.names():
        raise unknown("verb", name, VERBS.names())
    _check_options(name, options)
    command_line.check_files(options)
    if options.plan is not None:
        from jaxpar.cli.plan import planned

        options = planned(options)
        name, *words = options.words
    _check_words(name, words, program)
    if options.picture is not None:
        command_line.check_picture(options.picture, options.out)
    if options.report is not None:
        check_page(options.report, "--report")
    check_environment()
    if "processes" in VERBS.constant(name, "READS") and starts_several(options):
        return run_here(options, argv, program)
    _keep_compiled_programs()
    asked = command_line.Options(
        tuple(words), options.values, program, given=options.given, typed=tuple(argv)
    )
    return _run(name, argv, asked, files)


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


def _run(name: str, argv: list[str], options: command_line.Options, files: list[Path]) -> int:
    """Load a verb and run it; what it or a person's model prints stays out of a JSON record."""
    from jaxpar.hardware.own import is_local
    from jaxpar.program.configuration import prefer_cpu

    if not is_local(options.hardware) and (name != "doctor" or options.words):
        prefer_cpu()
    if "processes" not in VERBS.constant(name, "READS"):
        return _shown(name, argv, options, files)
    status = 1
    with taking_part(options, options.program) as speaks:
        status = _shown(name, argv, options, files, speaks=speaks)
    return status


def _shown(
    name: str,
    argv: list[str],
    options: command_line.Options,
    files: list[Path],
    speaks: bool | None = None,
) -> int:
    """Run a verb on the screen.

    Args:
        name: the verb's.
        argv: the words that were typed.
        options: the same, read.
        files: becomes what the verb writes to disk.
        speaks: whether this process of several shows what it does; None for one alone.

    Raises:
        ProcessFailed: for one of several that failed, which the others are told.
    """
    from jaxpar.cli.screen import Screen

    screen = Screen(options.json, pictured=options.picture is not None, silent=speaks is False)
    screen.files = files
    with screen.alone():
        status = VERBS.load(name)(options, screen)
        if screen.record is not None:
            typed = shlex.join([*options.program.split(), *argv])
            screen.record = stamped(screen.record, name, typed)
    if status and speaks is not None:
        raise ProcessFailed("; ".join(screen.faults) or f"status {status}")
    if options.report and speaks is not False and screen.record is not None:
        save_page([completed(screen.record, Path())], Path(options.report), "--report")
        screen.say(f"page: {options.report}")
    if options.picture and speaks is not False:
        typed = [word for word in argv if word not in ("--picture", options.picture)]
        try:
            screen.picture(Path(options.picture), f"{options.program} {' '.join(typed)}")
        except OSError as error:
            raise RequestError(
                f"--picture {options.picture}: cannot write it ({error.strerror})"
            ) from error
    return status


def _keep_compiled_programs() -> None:
    """Keep what XLA compiles in the user's cache folder, so that a second run starts in seconds."""
    import jax

    if os.environ.get("JAX_COMPILATION_CACHE_DIR") is None:
        folder = cache_folder()
        if folder is not None:
            jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
