"""Plan: a function traced at its global shapes, ready to run on shards inside `jax.shard_map`.

Pure and without devices: tracing and planning need shapes and specs only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec as P

from jaxpar.core.mesh import abstract_mesh, free_axes
from jaxpar.core.varying import varying
from jaxpar.spmd import callbacks, control, custom, lookup, rules, shards
from jaxpar.spmd.frame import Frame
from jaxpar.spmd.run import Collective, ManualError, Run
from jaxpar.spmd.value import Value, axes_of, local_shape

_ROOMS = (rules, lookup, control, custom, shards, callbacks)
_RULES = {name: rule for room in _ROOMS for name, rule in room.RULES.items()}


@dataclass(frozen=True)
class _Program:
    """What a plan needs to run again: the jaxpr, how its arguments and results are sharded, and the
    last key of each argument, which of a weight is its path."""

    closed: Any
    sizes: tuple[tuple[str, int], ...]
    stored: tuple[Any, ...]
    use: tuple[Any, ...]
    wanted: tuple[Any, ...] | None
    in_tree: Any
    out_tree: Any
    place: Any
    names: tuple[str, ...]
    kept: frozenset[str]

    def run(self) -> Run:
        """The state of one walk through it."""
        return Run(dict(self.sizes), _RULES, self.place, self.kept)


@dataclass(frozen=True)
class Plan:
    """A function on shards, and the collectives that it will make.

    Call it inside `jax.shard_map(..., in_specs=plan.in_specs, out_specs=plan.out_specs)` with local
    shards in the function's own argument trees.

    Attributes:
        in_specs: the stored spec of every argument leaf, in the arguments' trees.
        out_specs: the spec of every result leaf, in the result's tree.
        out_shapes: the results at their global shapes.
        collectives: those of the forward pass, in order.
    """

    in_specs: Any
    out_specs: Any
    out_shapes: Any
    collectives: tuple[Collective, ...]
    program: _Program = field(repr=False)

    def __call__(self, *args):
        """Run on local shards; every result is this device's shard, placed as `out_specs` says."""
        leaves, tree = jax.tree.flatten(args)
        program = self.program
        if tree != program.in_tree:
            raise ManualError(
                f"the plan was traced for arguments {program.in_tree}, and got {tree}: pass the "
                "same trees as to trace"
            )
        sizes = dict(program.sizes)
        for leaf, var, dims in zip(leaves, program.closed.in_avals, program.stored, strict=True):
            expected = local_shape(var.shape, dims, sizes)
            if np.shape(leaf) != expected:
                raise ManualError(
                    f"an argument of global shape {var.shape} came as {np.shape(leaf)} where its "
                    f"shard is {expected}: call the plan inside shard_map with plan.in_specs"
                )

        def body(*arrays):
            return [v.array for v in _walk(Frame(program.run()), program, arrays)]

        return jax.tree.unflatten(program.out_tree, body(*leaves))


def trace(
    fn,
    args,
    *,
    specs,
    axis_sizes: Mapping[str, int],
    use_specs=None,
    out_specs=None,
    ignored: tuple[str, ...] = (),
    place=None,
    kept: frozenset[str] = frozenset(),
) -> Plan:
    """Plan `fn(*args)` on a mesh: `specs` say how each argument leaf is stored.

    Args:
        fn: written for whole arrays; it names no mesh axis.
        args: a tuple of arguments, arrays or their `ShapeDtypeStruct`s, at global shapes.
        specs: a PartitionSpec for each leaf, or a tree prefix of them.
        axis_sizes: size of each mesh axis.
        use_specs: where weights are stored in more shards than they are used in: the spec for
            use, leaf by leaf. They are gathered where first used, inside the innermost body.
        out_specs: how the results must be sharded; left out, as they are computed.
        ignored: mesh axes over which nothing is sharded or summed here; arguments may differ along
            them.
        place: (names, shape) -> how an array that `fn` names is sharded, `used` in a part of a
            block and `between` the parts; None to leave such an array as it is computed.
        kept: last keys of the arguments that what is done to each element leaves as they are
            stored, such as running averages of weights.

    Raises:
        ManualError: a spec that does not fit its argument or the mesh.

    >>> plan = trace(lambda w, x: x @ w, (jnp.ones((4, 6)), jnp.ones((8, 4))),
    ...              specs=(P("model"), P("data")), axis_sizes={"data": 4, "model": 2})
    >>> plan.out_specs, plan.collectives[0].reason
    (P('data', None), "dot_general contracts a dim that is sharded over 'model'")
    """
    closed, shapes = jax.make_jaxpr(fn, return_shape=True)(*args)
    leaves, in_tree = jax.tree.flatten(args)
    shapes_flat, out_tree = jax.tree.flatten(shapes)
    sizes = {a: size for a, size in axis_sizes.items() if size > 1 and a not in ignored}
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(args)]
    names = [jax.tree_util.keystr(path) for path in paths]
    whose = tuple(
        str(getattr(path[-1], "key", name)) for path, name in zip(paths, names, strict=True)
    )

    def read(prefix, like, named, shaped):
        flat = _broadcast(prefix, like)
        return tuple(
            _placement(spec, tuple(leaf.shape), axis_sizes, name)
            for spec, leaf, name in zip(flat, shaped, named, strict=True)
        )

    stored = read(specs, args, names, closed.in_avals)
    use = stored if use_specs is None else read(use_specs, args, names, closed.in_avals)
    wanted = None
    if out_specs is not None:
        wanted = read(out_specs, shapes, ["a result"] * len(shapes_flat), shapes_flat)
    program = _Program(
        closed, tuple(sizes.items()), stored, use, wanted, in_tree, out_tree, place, whose, kept
    )

    found = {}

    def sketch(*arrays):
        run = program.run()
        frame = Frame(run)
        found["dims"] = [v.dims for v in _walk(frame, program, arrays)]
        found["log"] = tuple(run.log)
        return ()

    mesh = abstract_mesh(axis_sizes)
    in_flat = tuple(map(_spec, stored))
    jax.eval_shape(
        jax.shard_map(
            sketch, mesh=mesh, axis_names=free_axes(mesh), in_specs=in_flat, out_specs=()
        ),
        *(jax.ShapeDtypeStruct(v.shape, v.dtype) for v in closed.in_avals),
    )
    return Plan(
        in_specs=jax.tree.unflatten(in_tree, in_flat),
        out_specs=jax.tree.unflatten(out_tree, map(_spec, found["dims"])),
        out_shapes=shapes,
        collectives=found["log"],
        program=program,
    )


def _walk(frame, program, arrays):
    """This device's results of a program, from this device's shards of its arguments."""
    args = [
        Value(array, dims) if use == dims else Value(array, dims, use, name)
        for array, dims, use, name in zip(
            arrays, program.stored, program.use, program.names, strict=True
        )
    ]
    results = frame.walk(program.closed.jaxpr, program.closed.consts, args)
    wanted = program.wanted or [None] * len(results)
    return [_finish(frame, v, dims) for v, dims in zip(results, wanted, strict=True)]


def _finish(frame, value, dims):
    """A result as a Value in placement `dims` (as computed if None), equal along all other axes."""
    if dims is not None:
        value = frame.place(value, dims)
    elif getattr(value, "use", None) is None:
        value = frame.settle(value)
    # Along an ignored axis the caller's arguments may differ, and so may results.
    extra = varying(value.array) & frame.state.sizes.keys() - axes_of(value.dims)
    extra = tuple(sorted(extra))
    if not extra:
        return Value(value.array, value.dims)
    # Equal on all devices along these axes, but JAX cannot know; the mean makes it known, and gives
    # each device its share of the gradient.
    array = value.array
    if jnp.issubdtype(array.dtype, jnp.inexact):
        result = lax.pmean(array, extra)
    else:
        result = lax.pmax(array.astype(np.int32) if array.dtype == bool else array, extra)
        result = result.astype(array.dtype)
    frame.state.note(
        "all-reduce", extra, "a result is equal on devices that computed it separately", result
    )
    return Value(result, value.dims)


def _broadcast(prefix, like):
    """The spec of every leaf of `like`, in order; an argument that is None has none."""

    def is_leaf(node):
        return node is None or isinstance(node, P)

    spread = jax.tree.map(
        lambda spec, sub: jax.tree.map(lambda _: P() if spec is None else spec, sub),
        prefix,
        like,
        is_leaf=is_leaf,
    )
    return jax.tree.leaves(spread, is_leaf=lambda node: isinstance(node, P))


def _placement(spec, shape, axis_sizes, name):
    """A PartitionSpec as a placement; ManualError if it does not fit the shape or the mesh."""
    entries = [] if spec is None else list(spec)
    if len(entries) > len(shape):
        raise ManualError(f"{name}: spec {spec} has more entries than the {len(shape)} dims of it")
    entries += [None] * (len(shape) - len(entries))
    dims = []
    for d, (entry, size) in enumerate(zip(entries, shape, strict=True)):
        axes = () if entry is None else (entry,) if isinstance(entry, str) else tuple(entry)
        for axis in axes:
            if axis not in axis_sizes:
                there = ", ".join(axis_sizes)
                raise ManualError(
                    f"{name}: spec {spec} names axis '{axis}', and the mesh has {there}"
                )
        axes = tuple(axis for axis in axes if axis_sizes[axis] > 1)
        count = int(np.prod([axis_sizes[axis] for axis in axes]))
        if size % count:
            raise ManualError(
                f"{name}: dim {d} has size {size}, and spec {spec} splits it over {count} devices, "
                f"which does not divide {size}; leave the dim replicated or change its size"
            )
        dims.append(axes)
    used = [axis for axes in dims for axis in axes]
    if len(used) != len(set(used)):
        raise ManualError(f"{name}: spec {spec} uses an axis twice; an axis shards one dim")
    return tuple(dims)


def _spec(dims) -> P:
    """A placement as a PartitionSpec."""
    return P(*(None if not axes else axes[0] if len(axes) == 1 else axes for axes in dims))
