"""A Linen module as an NNX one, so that the rest of jaxpar knows one kind of module.

Flax's own bridge names the variables. What is added: collections that the module changes, such as
BatchNorm's statistics, may change in every call, what it sows is let go, and a child may have any
name, `train` and `module` too.
"""

from collections.abc import Callable, Mapping
from dataclasses import Field
from inspect import getattr_static
from typing import Any

import jax
from flax import linen, nnx
from flax.nnx.bridge.variables import linen_vars_to_nnx_attrs, nnx_attrs_to_linen_vars
from flax.traverse_util import flatten_dict, unflatten_dict


class FromLinen(nnx.bridge.ToNNX):
    """A Linen module that is called like an NNX one."""

    def __call__(
        self, *args: Any, rngs: Any = None, method: Any = None, mutable: Any = None, **kwargs: Any
    ) -> Any:
        """The Linen module's result; its state changes in place.

        Args:
            args, kwargs: as its method takes them.
            rngs: stream -> key, one key, or Flax's streams, in place of its own.
            method: a method or its name, `__call__` if None.
            mutable: collections that may change, in place of those that it has had.
        """
        keys = self._keys(rngs)
        call = {"rngs": keys, "method": method, **kwargs}
        if self._pytree__state.initializing:
            made, variables = self.to_nnx__module.init_with_output(
                keys, *args, method=method, **kwargs
            )
            variables = _apart(variables)
        else:
            own = _together(nnx_attrs_to_linen_vars(self._variables()))
            mutable = self.changing() if mutable is None else mutable
            made = self.to_nnx__module.apply(own, *args, mutable=mutable, **call)
            made, changed = made if mutable is not False else (made, {})
            apart = _apart({**own, **changed})
            variables = {collection: apart[collection] for collection in changed}
        for name, value in linen_vars_to_nnx_attrs(variables).items():
            setattr(self, name, nnx.data(_merged(vars(self).get(name), value)))
        return made

    def _keys(self, given: Any) -> dict[str, Any]:
        """A key for each stream, as Linen takes them: those given, and its own for the others."""
        if isinstance(given, jax.Array):
            return {"params": given}
        streams = given if isinstance(given, nnx.Rngs) else self.to_nnx__rngs
        keys = {name: stream() for name, stream in streams.items()} if streams else {}
        if "params" not in keys and "default" in keys:
            keys["params"] = keys.pop("default")
        return {**keys, **(given if isinstance(given, Mapping) else {})}

    def _variables(self) -> dict[str, Any]:
        """The Linen module's variables, by the names of its children."""
        ours = ("to_nnx__", "_pytree__")
        return {name: value for name, value in vars(self).items() if not name.startswith(ours)}

    def changing(self) -> list[str]:
        """Collections besides the parameters that the module has had since it was made."""
        state = nnx.state(self, nnx.Not(nnx.Any(nnx.Param, nnx.RngState, nnx.Intermediate)))
        kinds = {type(leaf) for _, leaf in nnx.to_flat_state(state)}
        return sorted(nnx.variable_name_from_type(k) for k in kinds if issubclass(k, nnx.Variable))

    def run(self, function: Callable[[Any], Any]) -> Any:
        """Call `function(self)`, as a method, which is what Flax can initialise by."""
        return function(self)


class _OwnName:
    """A name of this class that a child may have too: the child is kept beside it."""

    def __init__(self, name: str, own: Any):
        """Of the attribute `own` of the class."""
        self.name, self.own = name, own

    def __get__(self, holder: Any, kind: type) -> Any:
        """The class's own attribute, for this instance."""
        return self.own.__get__(holder, kind) if hasattr(self.own, "__get__") else self.own

    def __set__(self, holder: Any, value: Any) -> None:
        """Keep a child where Flax looks for children."""
        # Flax 0.12.12 leaves all of this to an attribute that can set itself.
        if isinstance(value, Field):
            value = value.metadata["nnx_value"]
        known = holder._pytree__nodes
        if not known.get(self.name):
            object.__setattr__(holder, "_pytree__nodes", known.update({self.name: True}))
        vars(holder)[self.name] = value

    def __delete__(self, holder: Any) -> None:
        """Let go of the child."""
        del vars(holder)[self.name]


for _name in dir(FromLinen):
    if not _name.startswith("_"):
        setattr(FromLinen, _name, _OwnName(_name, getattr_static(FromLinen, _name)))


def _apart(variables: Mapping[str, Any]) -> dict[str, Any]:
    """Variables by collection; one that is called as another collection's has its own beside it.

    NNX has one tree for all, and a running average is often called as the weight is.

    >>> _apart({"ema": {"kernel": 1}, "params": {"kernel": 2}})
    {'params': {'kernel': 2}, 'ema': {'kernel (ema)': 1}}
    """
    taken: set[tuple[str, ...]] = set()
    found = {}
    for collection in sorted(variables, key=lambda name: (name != "params", name)):
        flat = flatten_dict(variables[collection])
        ours = {path: (*path[:-1], f"{path[-1]} ({collection})") for path in taken & flat.keys()}
        found[collection] = unflatten_dict({ours.get(path, path): x for path, x in flat.items()})
        taken |= flat.keys()
    return found


def _together(variables: Mapping[str, Any]) -> dict[str, Any]:
    """What `_apart` was given."""

    def together(path, collection):
        *folders, name = path
        return (*folders, name.removesuffix(f" ({collection})") if isinstance(name, str) else name)

    return {
        collection: unflatten_dict({together(p, collection): x for p, x in flatten_dict(t).items()})
        for collection, t in variables.items()
    }


def _merged(old: Any, new: Any) -> Any:
    """Variables with new ones among them, tree by tree."""
    if not (isinstance(old, Mapping) and isinstance(new, Mapping)):
        return new
    return {**old, **{key: _merged(old.get(key), value) for key, value in new.items()}}


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
        if str(path[0]) in vars(wrapped):
            delattr(wrapped, str(path[0]))
    return wrapped
