"""JAX's configuration where a program needs it otherwise: set in this file alone, and put back.

JAX's settings hold for the whole process, so each is as it was once the last of those who need it
otherwise is done. Three cannot be put back, and say so: `simulate_devices`, `prefer_cpu` and
`prepare_for_several`.
"""

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import jax
from jax.experimental.compilation_cache.compilation_cache import reset_cache

from jaxpar.core.errors import RequestError
from jaxpar.core.jax_compat import is_being_traced, setting
from jaxpar.core.nvidia import has_nvidia_gpu

_UNCHECKED = "JAX_SKIP_CUDA_CONSTRAINTS_CHECK"

_lock = threading.Lock()
_changed: dict[str, tuple[Any, int]] = {}
"""Setting -> what it was before, and how many need it otherwise now."""


def prefer_cpu() -> None:
    """Let JAX start the CPU's platform alone, whatever JAX_PLATFORMS says.

    Not put back: for a process that is one's own, as a command is. Once JAX has started, it looks
    for no other platform.
    """
    jax.config.update("jax_platforms", "cpu")


def simulate_devices(count: int) -> None:
    """Let JAX start with `count` CPU devices, or with more if more were asked for before.

    Not put back: JAX reads it when it starts, and cannot add or take away a device later. Where it
    has started already, nothing changes.
    """
    if setting("jax_num_cpu_devices") >= count:
        return
    try:
        jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError:
        # JAX has started: what it has is what there is, and whoever needs more counts it.
        logging.getLogger(__name__).debug("JAX already started")


_COLLECTIVES = "xla_cpu_collective_timeout_seconds"


def prepare_for_several(collective_seconds: int) -> None:
    """Let JAX be one of several processes: to be called before it starts.

    Not put back: XLA reads its flags once. SIGTERM is left to the process, from which JAX would
    take it, and nothing would end it any more.

    Args:
        collective_seconds: how long a collective on CPUs waits for another process, unless
            XLA_FLAGS says it.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if _COLLECTIVES not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} --{_COLLECTIVES}={collective_seconds}".strip()
    jax.config.update("jax_enable_preemption_service", False)


_UNFIT = {
    "jax_debug_nans": (True, "a step is compiled ahead, where JAX cannot find the operation"),
    "jax_debug_infs": (True, "a step is compiled ahead, where JAX cannot find the operation"),
    "jax_no_tracing": (True, "a loss is traced"),
    "jax_no_execution": (True, "a first state is made"),
    "jax_disable_jit": (True, "nothing can be compiled"),
    "jax_check_tracer_leaks": (True, "a loss that is traced once, and kept, is a leak to it"),
    "jax_numpy_dtype_promotion": ("strict", "optax multiplies floats by counts"),
}
"""Settings of JAX under which no step can be made: setting -> the value, and why."""


def refuse_settings() -> None:
    """Refuse settings of JAX, such as a variable of the environment makes, that are not for us.

    A mesh that jax.set_mesh has set is one of them: what is traced under it is typed by it. So is a
    function that JAX traces: what is computed in it is not run.
    """
    if is_being_traced():
        raise RequestError(
            "this is called while JAX traces a function, as jax.jit does, and jaxpar "
            "compiles and runs programs of its own: call it outside of that function"
        )
    if not (mesh := jax.sharding.get_abstract_mesh()).empty:
        raise RequestError(
            f"jax.set_mesh has set mesh {dict(mesh.shape)}, and jaxpar puts arrays on one of its "
            "own: leave that block, or the call, out"
        )
    for name, (unfit, why) in _UNFIT.items():
        if setting(name) == unfit:
            raise RequestError(
                f"JAX's setting {name} is {unfit}, and {why}: unset {name.upper()}, or use "
                f"jax.config.update('{name}', ...)"
            )


def deliberate() -> AbstractContextManager[None]:
    """Within, arrays go between host and devices, whatever a person's transfer guard says.

    A guard is for what is copied by accident.
    """
    return jax.transfer_guard("allow")


@contextmanager
def quiet_start() -> Iterator[None]:
    """Within, JAX may start: a CUDA plugin on a machine without an NVIDIA GPU prints no traceback.

    The plugin looks for cuDNN and its like even there, where it is installed for its compiler
    alone. Not looking hides nothing: JAX uses CUDA only where it sees such a GPU, and there the
    plugin is let look.
    """
    if _UNCHECKED in os.environ or has_nvidia_gpu():
        yield
        return
    os.environ[_UNCHECKED] = "1"
    try:
        yield
    finally:
        os.environ.pop(_UNCHECKED, None)


@contextmanager
def uncached() -> Iterator[None]:
    """Within, JAX puts no program that it compiles into its compilation cache.

    For programs whose devices are not here: JAX would write one and then fail to read it back
    ("PjRtCompiler must be constructed with a Client"), with a warning at every later compilation.
    """
    with _setting("jax_persistent_cache_min_compile_time_secs", float("inf")):
        yield


@contextmanager
def compiled_anew() -> Iterator[None]:
    """Within, JAX compiles every program, also one that its compilation cache has.

    JAX reads the setting once, at its first compilation, and again when its cache is reset.
    """
    try:
        with _setting("jax_enable_compilation_cache", False):
            reset_cache()
            yield
    finally:
        reset_cache()


@contextmanager
def _setting(name: str, value: Any) -> Iterator[None]:
    """Within, JAX's setting `name` is `value`, in every thread."""
    with _lock:
        before, users = _changed.get(name, (getattr(jax.config, name), 0))
        _changed[name] = before, users + 1
        jax.config.update(name, value)
    try:
        yield
    finally:
        with _lock:
            before, users = _changed.pop(name)
            if users > 1:
                _changed[name] = before, users - 1
            else:
                jax.config.update(name, before)
