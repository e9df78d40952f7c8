"""A person's loss, called as it is written, without what it says of devices.

It is traced each time that it is called, and what was traced is computed without sharding
constraints; so whoever differentiates, shards or compares it meets a loss of no device at all.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from inspect import signature
from typing import Any

import jax
from flax import nnx
from jax.sharding import AbstractMesh, AxisType

from jaxpar.core.errors import RequestError
from jaxpar.core.source_lines import line_of_error
from jaxpar.inference.evaluating import flags_of
from jaxpar.inference.linen import is_being_made
from jaxpar.jaxprs.constraints import Aside, asides
from jaxpar.jaxprs.set_aside import evaluate_aside, said_of_devices

_NO_MESH = re.compile(r"non-empty mesh in context|is not found in mesh")
"""What JAX says of a sharding constraint whose mesh is not there."""


class WithoutDevices:
    """`loss(module, batch)`, its sharding constraints left out and its callbacks in any order.

    The axes that a constraint names are those of the author's mesh; where none is there, one of
    such axes, each of size 1, stands in while the loss is traced.
    """

    def __init__(self, loss: Callable[..., Any]):
        """Of a loss that names no axis, as far as is known."""
        self.loss = loss
        self.axes: list[str] = []
        self.constraints: tuple[Aside, ...] = ()
        if flags_of(loss, train=True):  # it asks whether it is in training
            self.__signature__ = signature(loss)

    def __call__(self, module: nnx.Module, batch: Any, **flags: bool) -> Any:
        """What the loss returns; the module's state changes in place."""
        if is_being_made(module):
            return self.on_a_mesh(lambda: self.loss(module, batch, **flags))
        graph, state = nnx.split(module)

        def function(state, batch):
            made = nnx.merge(graph, state)
            returned = self.loss(made, batch, **flags)
            nnx.pop(made, nnx.Intermediate)
            return returned, nnx.state(made)

        trace = jax.make_jaxpr(function, return_shape=True)
        closed, shapes = self.on_a_mesh(lambda: trace(state, batch))
        self.constraints = asides(closed)
        results = evaluate_aside(closed, jax.tree.leaves((state, batch)))
        returned, after = jax.tree.unflatten(jax.tree.structure(shapes), results)
        nnx.update(module, after)
        return returned

    def on_a_mesh(self, make: Callable[[], Any]) -> Any:
        """What `make` gives where the axes that are known are a mesh's."""
        if not self.axes:
            return make()
        sizes, types = (1,) * len(self.axes), (AxisType.Auto,) * len(self.axes)
        with jax.sharding.use_abstract_mesh(AbstractMesh(sizes, tuple(self.axes), types)):
            return make()

    def learn(self, error: BaseException | None) -> bool:
        """Add the axes that an error of JAX misses on a mesh; whether there were any."""
        said = str(error)
        if not _NO_MESH.search(said):
            return False
        named = set(re.findall(r"'(\w+)'", said.split(" is not found")[0])) - set(self.axes)
        fresh = sorted(named) or ["axis"] * (not self.axes)
        self.axes += fresh
        return bool(fresh)


def read_aside(
    loss: Callable[..., Any], read: Callable[..., Any]
) -> tuple[Any, tuple[list[str], list[str]], tuple[Aside, ...]]:
    """A loss read without what it says of devices, and the lines that say it.

    Args:
        loss: as it was given.
        read: makes of a loss whatever is wanted, its last part the `TracedLoss`.

    Returns:
        What `read` makes, the lines of sharding constraints and of ordered callbacks, and what the
        constraints say.
    """
    aside = WithoutDevices(loss)
    lines: list[str] = []
    while True:
        try:
            found = read(aside if lines else loss)
        except RequestError as error:
            if not aside.learn(error.__cause__):
                raise
            lines = lines or [line_of_error(error.__cause__)]
            continue
        said = said_of_devices(found[-1].closed)
        if any(said):
            found = read(aside)
        return found, (said if any(said) else (lines, [])), aside.constraints


def notes_aside(constraints: list[str], ordered: list[str]) -> list[str]:
    """What a person should know of what was set aside, a sentence each.

    Args:
        constraints, ordered: lines, of `said_of_devices`.
    """
    notes = []
    if constraints:
        notes.append(
            f"the model's own sharding constraints are set aside ({'; '.join(constraints)}): the "
            "layout says how arrays are sharded"
        )
    if ordered:
        notes.append(
            f"the model's ordered callbacks run in any order ({'; '.join(ordered)}): JAX keeps "
            "their order on one device only"
        )
    return notes
