"""Each private or version-dependent name of JAX does, in this JAX, what its docstring says."""

import ast
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from jaxpar.core import jax_compat

ROOT = Path(__file__).parents[1]


def test_every_name_of_the_file_is_tested_here():
    """A new name comes with its test."""
    tree = ast.parse(Path(jax_compat.__file__).read_text(encoding="utf-8"))
    names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    here = Path(__file__).read_text(encoding="utf-8")
    assert names and not {n for n in names if f"jax_compat.{n}" not in here}


def test_no_other_file_knows_what_is_private():
    """`jax._src` and `jaxlib` are imported in that one file."""
    for path in (ROOT / "jaxpar").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            private = [n for n in names if n.startswith(("jax._src", "jaxlib"))]
            assert not private or path.name == "jax_compat.py", (path, private)


def test_a_held_jaxpr_is_opened_closed_or_not():
    """The jaxpr of a jit and that of a remat, each with its constants."""
    closed = jax.make_jaxpr(lambda x: jax.jit(jax.checkpoint(jnp.sin))(x))(1.0)
    (call,) = closed.jaxpr.eqns
    inner, consts = jax_compat.open_jaxpr(call.params["jaxpr"])
    (remat,) = inner.eqns
    innermost, _ = jax_compat.open_jaxpr(remat.params["jaxpr"])
    assert consts == () and innermost.eqns[0].primitive.name == "sin"


def test_constants_become_the_first_arguments():
    """The same numbers, and nothing left inside."""
    table = jnp.arange(3.0)
    closed = jax.make_jaxpr(lambda x: x + jax.jit(lambda: table)())(jnp.ones(3))
    opened = jax_compat.with_constants_first(closed)
    assert not opened.consts and len(opened.jaxpr.invars) == len(closed.consts) + 1
    (result,) = jaxpr_as_fun(opened)(*closed.consts, jnp.ones(3))
    assert result.tolist() == [1.0, 2.0, 3.0]


def test_a_jaxpr_of_some_equations_computes_them():
    """The second of two equations alone."""
    closed = jax.make_jaxpr(lambda x: jnp.sin(jnp.cos(x)))(1.0)
    first, second = closed.jaxpr.eqns
    part = jax_compat.jaxpr_of(second.invars, second.outvars, [second], closed.jaxpr)
    (result,) = jaxpr_as_fun(ClosedJaxpr(part, ()))(0.5)
    assert float(result) == pytest.approx(float(jnp.sin(0.5)))
    assert first.outvars == list(part.invars)


def test_the_parts_of_a_scan():
    """One constant, two carried, one scanned."""

    def run(k, x):
        def body(carry, y):
            a, b = carry
            return (a + k, b + y), None

        return jax.lax.scan(body, (x, x), jnp.ones(4))

    eqns = jax.make_jaxpr(run)(jnp.array(2.0), jnp.array(0.0)).jaxpr.eqns
    (scan,) = [eqn for eqn in eqns if eqn.primitive.name == "scan"]
    assert jax_compat.scan_parts(scan.params) == (1, 3)


def test_varying_axes_of_a_type_under_shard_map():
    """What is sharded over an axis varies along it; what is replicated does not."""
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
    found = {}

    def here(x, y):
        found.update(
            x=jax_compat.varying_axes(jax.typeof(x)), y=jax_compat.varying_axes(jax.typeof(y))
        )
        return x

    mapped = jax.shard_map(here, mesh=mesh, in_specs=(P("data"), P()), out_specs=P("data"))
    jax.eval_shape(mapped, jnp.ones(4), jnp.ones(4))
    assert found == {"x": frozenset({"data"}), "y": frozenset()}


def test_a_setting_is_what_the_configuration_holds():
    """Inside a block that changes it, and after it."""
    before = jax_compat.setting("jax_enable_x64")
    with jax.enable_x64(not before):
        assert jax_compat.setting("jax_enable_x64") is not before
    assert jax_compat.setting("jax_enable_x64") is before


def test_whether_jax_traces_is_known():
    """Under jit, scan and eval_shape; not under grad and vmap, where what is computed is run."""
    found = []

    def ask(x):
        found.append(jax_compat.is_being_traced())
        return x

    jax.jit(ask)(1.0)
    jax.eval_shape(ask, 1.0)
    jax.lax.scan(lambda c, x: (ask(c), x), 0.0, jnp.ones(2))
    assert found[:2] == [True, True] and all(found)
    found.clear()
    for call in (ask, jax.grad(ask)):
        call(1.0)
    jax.vmap(ask)(jnp.ones(2))
    assert found == [False] * 3


def test_a_sharding_error_is_what_an_untyped_operation_raises():
    """Two arrays that explicit axes shard otherwise cannot be added."""
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Explicit,))
    a = jax.ShapeDtypeStruct((4, 4), "float32", sharding=jax.NamedSharding(mesh, P("data", None)))
    b = jax.ShapeDtypeStruct((4, 4), "float32", sharding=jax.NamedSharding(mesh, P(None, "data")))
    with jax.set_mesh(mesh), pytest.raises(jax_compat.sharding_errors()):
        jax.eval_shape(jnp.add, a, b)


def test_where_python_stood_when_an_operation_was_traced():
    """The innermost frame of this file is this test's lambda."""
    (eqn,) = jax.make_jaxpr(lambda x: jnp.sin(x))(1.0).jaxpr.eqns
    frames = list(jax_compat.traced_at(eqn.source_info.traceback))
    assert any(code.co_filename == __file__ for code, _ in frames)


def test_shardys_rules_stand_on_the_operations():
    """A product's; and CHLO's digamma, for which there is none, written in StableHLO."""
    lowered = jax.jit(lambda x: jax.lax.digamma(x @ x)).lower(jnp.ones((3, 3)))
    before, text = lowered.as_text(), str(jax_compat.with_shardy_rules(lowered))
    assert "([i, k], [k, j])->([i, j]) {i=3, j=3, k=3} reduction={k}" in text
    assert "chlo.digamma" in text and lowered.as_text() == before
    expanded = str(jax_compat.with_shardy_rules(lowered, expanded=True))
    assert "chlo." not in expanded and "stablehlo.log" in expanded


def test_one_process_alone_is_the_first_of_one():
    """Several are in `test_processes`, by `jax_compat.coordination` as well."""
    assert jax_compat.process_and_count() == (0, 1)
    assert jax_compat.coordination() == (None, "")


SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_NODELIST": "node[001-004]",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "0",
}
MPIRUN = {
    "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1:34911",
    "OMPI_COMM_WORLD_SIZE": "3",
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
}


@pytest.mark.parametrize(
    ("variables", "found"),
    [
        ({}, None),
        (SLURM, ("SlurmCluster", 2, 4)),
        (MPIRUN, ("OmpiCluster", 1, 3)),
        (SLURM | {"SLURM_NTASKS": "many"}, None),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, None),
    ],
)
def test_a_cluster_is_known_by_its_variables(variables, found, monkeypatch):
    """And a pod that is in no Indexed Job, or has not the package to ask, is one process alone."""
    for name in {*SLURM, *MPIRUN, "KUBERNETES_SERVICE_HOST"}:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert jax_compat.cluster() == found
