"""Memory that runs out while a program runs: a sentence, and a process that ends soon after it."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import jax

from jaxpar.core.errors import RequestError, words_of
from jaxpar.hardware.record import Hardware

ran_out = threading.Event()
"""Set once memory has run out: other devices may wait for the one that gave up, and XLA for them
when the process ends."""


@contextmanager
def memory_told(called: str, hardware: Hardware) -> Iterator[None]:
    """Within, memory that runs out is a RequestError; other errors of XLA's pass.

    Args:
        called: the model's name.
        hardware: that its program runs on.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        words = words_of(error)
        if "RESOURCE_EXHAUSTED" not in words:
            raise
        ran_out.set()
        raise RequestError(
            f"model '{called}': hardware '{hardware.name}' ran out of memory ({words}): use a "
            "smaller batch, more microbatches, smaller sizes or another layout; 'inspect' tells "
            "what a step takes of a device"
        ) from error
