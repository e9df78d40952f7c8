"""What of JAX is private, or differs between the versions that jaxpar runs on; and nothing else.

Every other file uses JAX's public names. Each name here has a test for each version (see
`tests/test_jax_compat.py`), so that a new JAX that moves one of them says so there.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from types import CodeType
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr


def setting(name: str) -> Any:
    """What JAX's configuration holds by that name: its attributes are made when JAX is imported."""
    return getattr(jax.config, name)


def is_being_traced() -> bool:
    """Whether JAX traces the function that calls this, as jit, scan and eval_shape do.

    What is computed there is written down and not run. JAX gives the name with a warning against
    it, meant for code that would compute something else then.
    """
    from jax.extend import core

    names: Any = core
    return names.unsafe_am_i_under_a_jit_DO_NOT_USE()


def open_jaxpr(inner: Any) -> tuple[Any, tuple[Any, ...]]:
    """The jaxpr and the constants of what an equation holds, closed or not.

    JAX 0.12 has one kind of jaxpr, which is closed; 0.10 and 0.11 hold either in a parameter.
    """
    return getattr(inner, "jaxpr", inner), tuple(getattr(inner, "consts", ()))


def with_constants_first(closed: ClosedJaxpr) -> ClosedJaxpr:
    """The same function, its constants as its first arguments: none are left in it."""
    inner = closed.jaxpr
    variables = (*inner.constvars, *inner.invars)
    return ClosedJaxpr(jaxpr_of(variables, inner.outvars, inner.eqns, inner), ())


def jaxpr_of(invars, outvars, eqns, like: Any) -> Jaxpr:
    """A jaxpr of some of the equations of `like`, its arguments without names."""
    info = like.debug_info._replace(arg_names=None, result_paths=None)
    effects = frozenset().union(*(eqn.effects for eqn in eqns))
    return Jaxpr((), tuple(invars), list(outvars), list(eqns), effects, info)


def scan_parts(params: Any) -> tuple[int, int]:
    """Where a scan's operands change from constants to carry, and from carry to slices."""
    if "num_carry" in params:
        return params["num_consts"], params["num_consts"] + params["num_carry"]
    consts, carry, _ = params["ft_in"].unpack()  # JAX 0.12 says it as a tree
    return len(consts), len(consts) + len(carry)


def varying_axes(kind: Any) -> frozenset[str]:
    """The mesh axes along which a type under shard_map lets an array differ between devices."""
    # JAX 0.10 moved the set from `vma` into `manual_axis_type`.
    types = getattr(kind, "manual_axis_type", None)
    return frozenset(kind.vma if types is None else types.varying)


def sharding_errors() -> tuple[type[Exception], ...]:
    """What JAX raises where it has no typed rule for an operation, or not for these types.

    Its own class for that is not public; some rules raise a plain NotImplementedError.
    """
    from jax._src.core import ShardingTypeError

    return (ShardingTypeError, NotImplementedError)


def traced_at(traceback: Any) -> Iterator[tuple[CodeType, int]]:
    """Where Python stood when an operation was traced: code and offset in it, innermost first.

    Args:
        traceback: of a source info of JAX's, or None.
    """
    return zip(*traceback.raw_frames(), strict=True) if traceback else iter(())


_SHARDY_RULES = "sdy-populate-op-sharding-rules"
"""The pass by which Shardy writes its rule on every operation."""


def with_shardy_rules(lowered: Any, *, expanded: bool = False) -> Any:
    """The StableHLO module of a lowered function, with Shardy's rules.

    An operation that has one has it in the attribute `sdy.sharding_rule`, which prints as
    `#sdy.op_sharding_rule<([i, k], [k, j])->([i, j]) {i=6, j=8, k=4} reduction={k}>`.

    Args:
        lowered: what `jax.jit(...).lower(...)` gives; it is left as it is.
        expanded: also write what JAX lowers to CHLO, for which Shardy has no rules, in StableHLO.

    Raises:
        NotImplementedError: this JAX's bindings of MLIR have no such pass.
    """
    try:
        from jaxlib._jax.mlir import hlo_to_stablehlo
        from jaxlib.mlir.ir import Module
        from jaxlib.mlir.passmanager import PassManager
    except ImportError as error:
        raise NotImplementedError(f"this JAX has no bindings of MLIR's passes: {error}") from error
    given = lowered.compiler_ir("stablehlo")
    written = str(given)
    if expanded:
        written = hlo_to_stablehlo(lowered.compiler_ir("hlo").as_serialized_hlo_module_proto())
    with given.context:
        module = Module.parse(written)
        try:
            passes = PassManager.parse(f"builtin.module(func.func({_SHARDY_RULES}))")
        except ValueError as error:
            raise NotImplementedError(f"this JAX has no pass {_SHARDY_RULES}: {error}") from error
        passes.run(module.operation)
    return module


READ_XLA_FLAGS = "from jaxlib import xla_client; xla_client.CompileOptions()"
"""A program that lets XLA read XLA_FLAGS, and fails if it cannot; a fifth of a second."""


def process_and_count() -> tuple[int, int]:
    """(this process's number, how many there are) of those that jax.distributed joined: (0, 1) for
    one alone.

    JAX's public names for them start its devices, whose number is decided by these.
    """
    from jax._src.distributed import global_state

    return global_state.process_id, global_state.num_processes


def coordination() -> tuple[Any, str]:
    """(what the processes that jax.distributed joined share: keys with values, and barriers; the
    address of process 0).

    Its methods are `key_value_set`, `blocking_key_value_get` and `wait_at_barrier`.
    """
    from jax._src.distributed import global_state

    return global_state.client, global_state.coordinator_address or ""


def cluster() -> tuple[str, int, int] | None:
    """(name, this process's number, how many there are), as jax.distributed would detect them.

    None where it detects none, or one whose place it cannot tell: SLURM is detected within `srun`,
    Open MPI within `mpirun`, Kubernetes in an Indexed Job with the package `kubernetes`.
    """
    from jax._src.clusters import ClusterEnv

    for found in ClusterEnv._cluster_types:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # a package is missing, in a pod of any kind
                if found.opt_in_only_method or not found.is_env_present():
                    continue
                return found.__name__, found.get_process_id(), found.get_process_count()
        except Exception:  # of an interface that is asked over a network, or a variable's value
            return None
    return None
