"""A Linen module as an NNX one, so that the rest of jaxpar knows one kind of module.

Flax's own bridge does the work. What is added: collections that the module changes, such as
BatchNorm's statistics, may change in every call, and what it sows is let go.
"""

from collections.abc import Callable
from typing import Any

from flax import linen, nnx


class FromLinen(nnx.bridge.ToNNX):
    """A Linen module that is called like an NNX one."""

    def __call__(self, *args: Any, mutable: Any = None, **kwargs: Any) -> Any:
        """The Linen module's result; its state changes in place."""
        if mutable is None and not self._pytree__state.initializing:
            mutable = self.changing()
        return super().__call__(*args, mutable=mutable, **kwargs)

    def changing(self) -> list[str]:
        """Collections besides the parameters that the module has had since it was made."""
        state = nnx.state(self, nnx.Not(nnx.Any(nnx.Param, nnx.RngState, nnx.Intermediate)))
        kinds = {type(leaf) for _, leaf in nnx.to_flat_state(state)}
        return sorted(nnx.variable_name_from_type(k) for k in kinds if issubclass(k, nnx.Variable))

    def run(self, function: Callable[[Any], Any]) -> Any:
        """Call `function(self)`, as a method, which is what Flax can initialise by."""
        return function(self)


def is_being_made(module: nnx.Module) -> bool:
    """Whether a module is a Linen one that makes its variables in this very call."""
    return isinstance(module, FromLinen) and module._pytree__state.initializing


def from_linen(module: linen.Module, rngs: nnx.Rngs, call: Callable[[Any], Any]) -> FromLinen:
    """Make an NNX module of a Linen one, with variables of its own.

    Args:
        module: any Linen module.
        rngs: for its parameters, and for what it draws later.
        call: `call(module)` calls it as it will be called, on data of the right shapes.
    """
    wrapped = FromLinen(module, rngs=rngs)
    nnx.bridge.lazy_init(wrapped.run, call)
    for path, _ in nnx.to_flat_state(nnx.state(wrapped, nnx.Intermediate)):
        if hasattr(wrapped, str(path[0])):
            delattr(wrapped, str(path[0]))
    return wrapped
