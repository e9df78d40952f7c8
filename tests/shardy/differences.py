"""The differences between our rules and Shardy's that are meant, each with its reason."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from shardy.fates import Place


@dataclass(frozen=True)
class Deliberate:
    """A difference that is meant.

    Attributes:
        primitives: where it is met.
        fates: "ours/Shardy's", each pair that is met.
        reason: one sentence.
        where: (equation, place) -> whether it is of this difference.
        until: the JAX version whose Shardy no longer differs, if one is known.
    """

    primitives: str
    fates: str
    reason: str
    where: Callable[[Any, Place], bool] = lambda eqn, place: True
    until: tuple[int, int] | None = None

    def covers(self, eqn, place: Place, fates: str) -> bool:
        """Whether a difference met is this one."""
        name = eqn.primitive.name
        return (
            name in self.primitives.split()
            and fates in self.fates.split()
            and self.where(eqn, place)
        )


def _in_space(eqn, place):
    """Whether a place is along an image, or along a filter's window."""
    numbers = eqn.params["dimension_numbers"]
    specs = {
        "operand 0": numbers.lhs_spec,
        "operand 1": numbers.rhs_spec,
        "result 0": numbers.out_spec,
    }
    return place.dim in specs[place.array][2:]


def _looked_up(eqn, place):
    return place.array == "operand 0" and eqn.params["slice_sizes"][place.dim] == 1


def _written_to(eqn, place):
    numbers = eqn.params["dimension_numbers"]
    return (
        place.array in ("operand 0", "result 0")
        and place.dim in numbers.scatter_dims_to_operand_dims
    )


def _of_updates(eqn, place):
    return place.array in ("operand 1", "operand 2")


def _ragged(eqn, place):
    numbers = eqn.params["ragged_dot_dimension_numbers"]
    (ragged,) = numbers.lhs_ragged_dimensions
    return place.size == eqn.invars[0].aval.shape[ragged]


def _partly_written(eqn, place):
    operand, update, *_ = eqn.invars
    return operand.aval.shape[place.dim] != update.aval.shape[place.dim]


def _padded(eqn, place):
    return any(eqn.params["padding_config"][place.dim])


DELIBERATE = (
    Deliberate(
        "gather",
        "whole/reduced",
        "a looked-up dim may be sharded for whoever masks what other devices have and sums, as "
        "jaxpar.spmd.lookup does; for anyone else the table is needed whole",
        _looked_up,
    ),
    Deliberate(
        "scatter scatter-add scatter-sub scatter-mul scatter-max scatter-min",
        "whole/passes",
        "a device would have to leave out what is written to other devices' rows, which XLA's "
        "partitioner does and nothing here",
        _written_to,
    ),
    Deliberate(
        "scatter-add scatter-mul scatter-max scatter-min",
        "whole/reduced",
        "what some of the updates make would have to start from nothing and be put together with "
        "the operand later, which XLA's partitioner does and nothing here",
        _of_updates,
    ),
    Deliberate(
        "dynamic_update_slice",
        "whole/passes",
        "which device has the place is known at run time only; Shardy of JAX 0.11 agrees",
        _partly_written,
        until=(0, 11),
    ),
    Deliberate(
        "argmax argmin reduce reduce_xor",
        "whole/reduced",
        "no collective puts together what devices find in their pieces",
    ),
    Deliberate(
        "ragged_dot_general",
        "whole/passes whole/reduced",
        "a row's group depends on how many rows come before it; what JAX lowers to for CPUs is "
        "dense, with rows masked by their number",
        _ragged,
    ),
    Deliberate(
        "conv_general_dilated",
        "whole/reduced whole/absent absent/whole absent/reduced",
        "a piece of an image needs its neighbours' rows, which Shardy leaves to XLA's partitioner; "
        "no strategy shards space",
        _in_space,
    ),
    Deliberate(
        "lu_pivots_to_permutation",
        "whole/reduced",
        "a row is swapped with one that earlier swaps have left there",
    ),
    Deliberate(
        "attend",
        "whole/passes whole/reduced",
        "positions and widths are exchanged by jaxpar.attention, inside of it",
    ),
    Deliberate(
        "pad",
        "whole/passes",
        "padded at one end and cut at the other a dim keeps its size and moves, and Shardy looked "
        "at sizes alone; Shardy of JAX 0.12 agrees",
        _padded,
        until=(0, 12),
    ),
    Deliberate(
        "regularized_incomplete_beta",
        "passes/whole",
        "it iterates until all elements have converged, and a device may stop when its own have; "
        "Shardy of JAX 0.12 agrees",
        until=(0, 12),
    ),
)
