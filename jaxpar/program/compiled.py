"""What XLA makes of a lowered function, and what it says where it makes nothing of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax

from jaxpar.core.errors import RequestError, words_of
from jaxpar.core.progress import here
from jaxpar.program.dumps import Dumps
from jaxpar.program.warnings import XlaWarning


@dataclass(frozen=True)
class Made:
    """A compiled update, and what was learned while it was made.

    Attributes:
        update: what JAX made of it.
        warnings: what XLA warned of, now or when it compiled the same program before.
        compile_seconds: wall clock, lowering with it; short if JAX had kept the program.
        dumps: what XLA wrote down of it, where it was told to.
    """

    update: Any
    warnings: tuple[XlaWarning, ...]
    compile_seconds: float
    dumps: Dumps = field(default_factory=Dumps)


def compiled(lowered: Any, options: Mapping[str, Any] | None, model: str, hardware: str) -> Any:
    """The compiled form of a lowered function.

    Args:
        lowered: from `jax.jit(...).lower(...)`.
        options: XLA's, by its own names.
        model, hardware: their names, for people.

    Raises:
        RequestError: XLA refuses an option or the program, in its words.
    """
    try:
        with here.long_work("compiling", together=True):
            return lowered.compile(options)
    except RuntimeError as error:  # JaxRuntimeError is one; XLA's own bindings raise another
        words = words_of(error)
        if "compile option" in words or "While setting option" in words:
            raise RequestError(
                f"XLA of jax {jax.__version__} does not take an option of hardware '{hardware}' "
                f"({words.partition(': ')[2] or words}): use --set xla.NAME=value with a name and "
                "a value that it knows"
            ) from error
        raise RequestError(
            f"XLA cannot compile model '{model}' for hardware '{hardware}' ({words[:300]}): use "
            "smaller sizes, or another layout"
        ) from error
