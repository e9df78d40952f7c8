"""The collectives of a compiled program, against texts and programs counted by hand."""

import importlib.util
import json
import linecache
import re
from functools import partial
from math import prod

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hlo_text import ARRAY_BYTES, ONE_REDUCE, TABLES, G, found, loop, only, program, run_loop
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxpar.hlo.collectives import axes_of, parse_groups, spans_whole_axes
from jaxpar.hlo.parse import parse
from jaxpar.measures import traffic

MESH = {"data": 4, "model": 2}  # partition ids: data 0 is (0, 1), data 1 is (2, 3), ...
DATA_GROUPS = ((0, 2, 4, 6), (1, 3, 5, 7))
MODEL_GROUPS = ((0, 1), (2, 3), (4, 5), (6, 7))


# --- spellings -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{}", ((0, 1, 2, 3, 4, 5, 6, 7),)),
        ("{{0,1},{2,3},{4,5},{6,7}}", MODEL_GROUPS),
        ("{{0,1,2},{3,4,5,6,7}}", ((0, 1, 2), (3, 4, 5, 6, 7))),
        ("[2,4]<=[8]", ((0, 1, 2, 3), (4, 5, 6, 7))),
        # 0..7 as 4 rows of 2, read down the columns: 0 2 4 6 1 3 5 7, cut into fours.
        ("[2,4]<=[4,2]T(1,0)", DATA_GROUPS),
        # 0..7 as 2 rows of 4, read down: 0 4 1 5 2 6 3 7, cut into twos.
        ("[4,2]<=[2,4]T(1,0)", ((0, 4), (1, 5), (2, 6), (3, 7))),
        ("mesh['axis_0'=4,'axis_1'=2] {'axis_0'}", DATA_GROUPS),
        ("mesh['axis_0'=4,'axis_1'=1,'axis_2'=2] {'axis_2'}", MODEL_GROUPS),
        ("mesh['axis_0'=4,'axis_1'=2] {'axis_0','axis_1'}", ((0, 1, 2, 3, 4, 5, 6, 7),)),
        ("mesh[a=4,b=2] {b}", MODEL_GROUPS),
        # a = 2 * (its left half) + (its right half); id = 2 * a + b = 4 * left + 2 * right + b.
        ("mesh['a'=4,'b'=2] {'a':(1)2}", ((0, 4), (1, 5), (2, 6), (3, 7))),
        ("mesh['a'=4,'b'=2] {'a':(2)2}", ((0, 2), (1, 3), (4, 6), (5, 7))),
        ("mesh['a'=4,'b'=2] {'a':(2)2,'b'}", ((0, 1, 2, 3), (4, 5, 6, 7))),
        # Row 0 of this mesh holds devices 0 2 4 6.
        ("mesh['a'=2,'b'=4], device_ids=([2,4]<=[4,2]T(1,0)) {'b'}", DATA_GROUPS),
        ("mesh['a'=2,'one'=1,'b'=4], device_ids=([4,2]T(1,0)) {'a'}", MODEL_GROUPS),
        ("mesh['a'=2,'b'=2], device_ids=([2,2]3,1,0,2) {'b'}", ((3, 1), (0, 2))),
    ],
)
def test_groups_are_read_from_every_spelling(text, expected):
    assert parse_groups(text, 8) == expected
    # And where they stand in a program, with attributes after them and without.
    for tail in ("", ", use_global_device_ids=true, to_apply=%add"):
        line = f"ROOT %r = f32[16,8]{{1,0}} all-reduce(%p), replica_groups={text}{tail}"
        assert only(program(line)).groups == expected


def test_an_unknown_spelling_of_groups_is_an_error_not_an_omission():
    with pytest.raises(ValueError, match="replica groups"):
        parse_groups("everyone", 8)
    with pytest.raises(ValueError, match="%?r: no replica_groups"):
        found(program("ROOT %r = f32[16,8]{1,0} all-reduce(%p), replica_groups=everyone"))


@pytest.mark.parametrize(
    ("line", "kind", "bytes_each", "is_async"),
    [
        (f"%r = f32[16,8]{{1,0}} all-reduce(%p), {G}, to_apply=%add", "all-reduce", 512, False),
        (f"%r = f32[16,8] all-reduce-start(%p), {G}, to_apply=%add", "all-reduce", 512, True),
        # 3 of bf16[5] are 10 bytes each more; the two of a combined one are summed.
        (
            f"%b = bf16[5] constant(0)\n%r = (f32[16,8], bf16[5]) all-reduce(%p, %b), {G}",
            "all-reduce",
            512 + 10,
            False,
        ),
        # Four members gather four times the operand, however the start spells its result.
        (f"%r = f32[64,8]{{1,0}} all-gather(%p), {G}, dimensions={{0}}", "all-gather", 2048, False),
        (f"%r = (f32[16,8], f32[64,8]) all-gather-start(%p), {G}", "all-gather", 2048, True),
        (
            f"%r = ((f32[16,8], f32[16,8]), (f32[64,8], f32[64,8])) all-gather-start(%p, %p), {G}",
            "all-gather",
            4096,
            True,
        ),
        (f"%r = f32[4,8]{{1,0}} reduce-scatter(%p), {G}, to_apply=%add", "reduce-scatter", 512, 0),
        (
            f"%r = ((f32[16,8]), f32[4,8]) reduce-scatter-start(%p), {G}, to_apply=%add",
            "reduce-scatter",
            512,
            True,
        ),
        (f"%r = f32[16,8]{{1,0}} all-to-all(%p), {G}, dimensions={{0}}", "all-to-all", 512, False),
        (f"%r = ((f32[16,8]), f32[16,8]) all-to-all-start(%p), {G}", "all-to-all", 512, True),
        (
            f"%r = (f32[16,8], f32[16,8], f32[16,8], f32[16,8]) all-to-all(%p, %p, %p, %p), {G}",
            "all-to-all",
            4 * 512,
            False,
        ),
        (f"%r = f32[16,8] collective-broadcast(%p), {G}", "collective-broadcast", 512, False),
        (
            "%i = s64[4] constant({...})\n"
            f"%r = f32[16,8] ragged-all-to-all(%p, %p, %i, %i, %i, %i), {G}",
            "ragged-all-to-all",
            512,
            False,
        ),
        (
            f"%r = (f32[16,8], f32[16,8]) all-reduce-start((f32[16,8]{{1,0}}) %p, %p), {G}",
            "all-reduce",
            1024,
            True,
        ),
        (
            f'%r = f32[16,8] all-reduce-start(%p), {G}, backend_config={{"is_sync":true}}',
            "all-reduce",
            512,
            False,
        ),
    ],
)
def test_payload_of_each_kind(line, kind, bytes_each, is_async):
    one = only(program(line))
    assert (one.kind, one.bytes_each, one.is_async) == (kind, bytes_each, bool(is_async))
    assert (one.groups, one.executions, one.exact) == (DATA_GROUPS, 1, True)
    assert "p" in one.operands


def test_permutes_keep_their_pairs_in_all_three_spellings():
    pairs = "{{0,2},{2,4},{4,6},{6,0}}"
    text = program(f"""
        %a = f32[16,8] collective-permute(%p), source_target_pairs={pairs}
        %b = (f32[16,8], f32[16,8]) collective-permute-start(%p), source_target_pairs={pairs}
        %done = f32[16,8] collective-permute-done(%b)
        %t = token[] after-all()
        %s = (f32[16,8], u32[], token[]) send(%p, %t), channel_id=1, frontend_attributes={{_xla_send_recv_source_target_pairs="{pairs}"}}
        %sd = token[] send-done(%s), channel_id=1
    """)  # noqa: E501
    permutes = found(text)
    assert [one.name for one in permutes] == ["a", "b", "s"]
    for one in permutes:
        assert one.kind == "collective-permute"
        assert one.pairs == ((0, 2), (2, 4), (4, 6), (6, 0))
        assert (one.groups, one.bytes_each) == ((), ARRAY_BYTES)


def test_a_collective_wrapped_in_async_start_counts_once():
    wrapped = f"""%wrapped (q: f32[16,8]) -> f32[4,8] {{
  %q = f32[16,8]{{1,0}} parameter(0)
  ROOT %rs = f32[4,8]{{1,0}} reduce-scatter(%q), {G}, dimensions={{0}}, to_apply=%add
}}, execution_thread="main"
"""
    text = program(
        """
        %s = ((f32[16,8]), f32[4,8], u32[]) async-start(%p), calls=%wrapped
        %d = f32[4,8] async-done(%s)
        """,
        wrapped,
    )
    one = only(text)
    assert (one.kind, one.bytes_each, one.executions, one.is_async) == (
        "reduce-scatter",
        ARRAY_BYTES,
        1,
        True,
    )


def test_groups_of_one_say_nothing_and_are_left_out():
    alone = "{{0},{1},{2},{3},{4},{5},{6},{7}}"
    text = program(f"""
        %a = f32[16,8] all-reduce(%p), replica_groups={alone}, to_apply=%add
        %b = f32[16,8] all-gather(%p), replica_groups=[8,1]<=[8]
        %c = f32[16,8] collective-permute(%p), source_target_pairs={{{{3,3}}}}
        %d = f32[16,8] all-reduce(%p), replica_groups={{{{0,1}},{{2}},{{3,4,5,6,7}}}}
    """)
    assert only(text).name == "d"


def test_groups_that_name_replicas_span_all_partitions():
    text = program("%a = f32[16,8] all-reduce(%p), channel_id=1, replica_groups={{0}}")
    assert only(text).groups == (tuple(range(8)),)
    assert not found(program("%a = f32[16,8] all-reduce(%p), replica_groups={{0}}"))


# --- source --------------------------------------------------------------------------------------


def test_a_combined_collective_borrows_the_nearest_source():
    meta = 'metadata={op_name="jit(f)/mul" stack_frame_id=1}'
    text = program(
        f"""
        %far = f32[16,8] negate(%p), metadata={{op_name="jit(f)/neg" stack_frame_id=2}}
        %near = f32[16,8] multiply(%far, %far), {meta}
        %view = f32[16,8] bitcast(%near)
        %r = f32[16,8] all-reduce(%view), {G}, to_apply=%add
        """,
        tables=TABLES,
    )
    one = only(text)
    assert (one.op_name, one.frames[0].line, one.borrowed) == ("jit(f)/mul", 99, True)


def test_borrowing_looks_into_fusions_and_past_argument_names():
    """A parameter carries a name but no line; the fusion that reads it holds a line inside."""
    fused = """%fused (q: f32[16,8]) -> f32[16,8] {
  %q = f32[16,8]{1,0} parameter(0), metadata={op_name="x"}
  ROOT %s = f32[16,8]{1,0} sine(%q), metadata={op_name="jit(f)/sin" stack_frame_id=2}
}
"""
    text = program(
        f"""
        %x = f32[16,8] copy(%p), metadata={{op_name="x"}}
        %k = f32[16,8] fusion(%x), kind=kLoop, calls=%fused
        %r = f32[16,8] all-reduce(%x, %k), {G}, to_apply=%add
        """,
        fused,
        TABLES,
    )
    one = only(text)
    assert (one.op_name, one.frames[0].line, one.borrowed) == ("jit(f)/sin", 12, True)


# --- axes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("attribute", "axes", "whole"),
    [
        ("replica_groups={{0,1},{2,3},{4,5},{6,7}}", ("model",), True),
        ("replica_groups={{0,2,4,6},{1,3,5,7}}", ("data",), True),
        ("replica_groups={}", ("data", "model"), True),
        # Half of the data axis; two axes at once but only on the diagonal; unequal groups.
        ("replica_groups={{0,2},{4,6},{1,3},{5,7}}", ("data",), False),
        ("replica_groups={{0,3},{1,2},{4,7},{5,6}}", ("data", "model"), False),
        ("replica_groups={{0,2,4,6},{1,3},{5,7}}", ("data",), False),
        ("source_target_pairs={{0,1},{1,0}}", ("model",), True),
        ("source_target_pairs={{0,2},{2,4},{4,6},{6,0}}", ("data",), True),
        ("source_target_pairs={{0,0},{2,4}}", ("data",), True),
        ("source_target_pairs={{0,3}}", ("data", "model"), False),
    ],
)
def test_axes_are_those_that_vary_inside_a_group(attribute, axes, whole):
    opcode = "collective-permute" if "pairs" in attribute else "all-reduce"
    one = only(program(f"%r = f32[16,8] {opcode}(%p), {attribute}"))
    assert axes_of(one, MESH) == axes
    assert spans_whole_axes(one, MESH) is whole
    # An axis of size one never varies, wherever it stands.
    assert axes_of(one, {"pipe": 1, **MESH, "seq": 1}) == axes


def test_a_mesh_too_small_for_the_program_is_refused():
    one = only(program(ONE_REDUCE))
    with pytest.raises(ValueError, match="partition 7.*has 4 devices"):
        axes_of(one, {"data": 4})


# --- the table -----------------------------------------------------------------------------------


def test_traffic_sums_by_kind_and_axes_and_sorts_by_bytes():
    meta = "metadata={op_name=\"jit(f)/f\" stack_frame_id=2}"  # fmt: skip
    inside = f"%r = f32[16,8] all-reduce(%p), {G}, to_apply=%add, {meta}"
    text = program(
        run_loop("a", "p", known="5")
        + f"""
        %x1 = f32[16,8] all-reduce(%p), {G}, metadata={{op_name="grads"}}
        %x2 = f32[16,8] all-reduce(%p), {G}, metadata={{op_name="grads"}}
        %y = f32[16,8] all-reduce(%p), replica_groups=[4,2]<=[8]
        %g = f32[128,8] all-gather(%p), replica_groups={{}}
        """,
        loop("a", inside),
        TABLES,
    )
    rows = traffic.traffic(text, MESH)
    assert [(r.kind, r.axes, r.count, r.bytes, r.exact) for r in rows] == [
        ("all-gather", ("data", "model"), 1, 8 * ARRAY_BYTES, True),
        ("all-reduce", ("data",), 7, 7 * ARRAY_BYTES, True),
        ("all-reduce", ("model",), 1, ARRAY_BYTES, True),
    ]
    assert [r.sources for r in rows] == [(), ("/home/me/model.py:12 block", "grads"), ()]
    records = json.loads(json.dumps(traffic.as_records(rows)))
    assert records[1] == {
        "kind": "all-reduce",
        "of": None,
        "axes": ["data"],
        "between_nodes": None,
        "count": 7,
        "bytes": 3584,
        "sources": ["/home/me/model.py:12 block", "grads"],
    }


def test_traffic_keeps_partial_axes_and_guesses_apart():
    text = program(
        run_loop("a", "p", start="3")
        + f"%sure = {ONE_REDUCE[5:]}\n"  # one guess makes the row a guess
        + "%half = f32[16,8] all-reduce(%p), replica_groups=[4,2]<=[2,4]T(1,0)",
        loop("a", ONE_REDUCE),
    )
    rows = traffic.traffic(text, MESH)
    assert {(r.axes, r.whole, r.exact) for r in rows} == {
        (("data",), True, False),
        (("data",), False, True),  # groups (0, 4), (1, 5), ...: every other row of data
    }


# --- programs compiled here, on eight CPU devices ------------------------------------------------


@pytest.fixture(scope="module")
def mesh():
    devices = jax.devices("cpu")
    if len(devices) < 8:
        pytest.skip("needs eight CPU devices (jax_num_cpu_devices)")
    return Mesh(np.array(devices[:8]).reshape(4, 2), tuple(MESH))


def abstract(mesh, shape, *spec, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, P(*spec)))


def rows_of(function, *arguments, **options):
    text = jax.jit(function).lower(*arguments).compile(**options).as_text()
    return {(r.kind, *r.axes): r for r in traffic.traffic(text or "", MESH)}


def manual(mesh, in_specs, out_specs):
    """`shard_map` over the test's mesh, for programs whose collectives are written out."""
    return partial(
        jax.shard_map, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
    )


def test_data_parallel_gradients_are_all_reduced_once_each(mesh):
    """Bytes of the all-reduce = bytes of the parameters, in however many operations."""
    shapes = ((64, 128), (128,), (128, 8))
    params = tuple(abstract(mesh, shape) for shape in shapes)

    def gradients(w, x):
        def loss(w):
            return jnp.mean(jnp.tanh(x @ w[0] + w[1][None, :]) @ w[2])

        return jax.grad(loss)(w)

    rows = rows_of(gradients, params, abstract(mesh, (32, 64), "data"))
    assert set(rows) == {("all-reduce", "data")}
    row = rows["all-reduce", "data"]
    assert row.bytes == sum(prod(shape) * 4 for shape in shapes)
    assert row.exact
    assert any("test_collectives.py" in source for source in row.sources)


def test_collectives_in_scans_count_every_layer(mesh):
    """10 layers of a gathered 32 x 16 weight, 3 inner steps of a 4 x 16 sum in each."""

    @manual(mesh, (P(None, "model"), P("data")), P("data"))
    def layers(w, x):
        def inner(h, _):
            return jnp.tanh(jax.lax.psum(h, "data")), None

        def layer(h, w_shard):
            h = h @ jax.lax.all_gather(w_shard, "model", tiled=True)
            return jax.lax.scan(inner, h, None, length=3)[0], None

        return jax.lax.scan(layer, x, w)[0]

    x = abstract(mesh, (16, 16), "data")
    rows = rows_of(layers, abstract(mesh, (10, 16, 16), None, "model"), x)
    gathered, summed = rows["all-gather", "model"], rows["all-reduce", "data"]
    assert (gathered.count, gathered.bytes) == (10, 10 * 16 * 16 * 4)
    assert (summed.count, summed.bytes) == (30, 30 * 4 * 16 * 4)
    assert gathered.exact and summed.exact


def test_a_loop_of_unknown_length_is_not_exact(mesh):
    @manual(mesh, (P("data"), P()), P("data"))
    def repeat(x, n):
        return jax.lax.fori_loop(0, n, lambda _, h: jax.lax.psum(h, "model"), x)

    rows = rows_of(repeat, abstract(mesh, (16, 8), "data"), abstract(mesh, (), dtype=jnp.int32))
    row = rows["all-reduce", "model"]
    assert (row.count, row.exact) == (1, False)


def zoo(mesh):
    """One collective of each kind, on shards of shape (256, 128); shapes of results are kept."""

    @manual(mesh, (P("data", "model"),), (P("data", "model"),) * 5)
    def function(x):
        scattered = jax.lax.psum_scatter(x, "data", tiled=True)
        shifted = jax.lax.ppermute(x, "data", [(k, (k + 1) % 4) for k in range(4)])
        turned = jax.lax.all_to_all(x, "model", 0, 1, tiled=True)
        gathered = jax.lax.all_gather(jnp.cos(x), "model", tiled=True)
        long, short = jax.lax.psum((jnp.exp(x), x[:1] * 2), ("data", "model"))
        return jnp.sin(scattered), jnp.sin(shifted), turned, gathered, long * short

    return function, abstract(mesh, (1024, 256), "data", "model")


SHARD_BYTES = 256 * 128 * 4
ZOO_BYTES = {
    ("reduce-scatter", "data"): SHARD_BYTES,  # before reducing
    ("collective-permute", "data"): SHARD_BYTES,
    ("all-to-all", "model"): SHARD_BYTES,
    ("all-gather", "model"): 2 * SHARD_BYTES,  # after gathering
    ("all-reduce", "data", "model"): SHARD_BYTES + 128 * 4,  # both operands
}


def test_every_kind_is_read_from_a_cpu_program(mesh):
    function, x = zoo(mesh)
    rows = rows_of(function, x)
    assert {key: row.bytes for key, row in rows.items()} == ZOO_BYTES


# --- programs compiled for H100s that are described, not present ---------------------------------

H100 = """gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 core_count: 132 fpus_per_core: 128
  shared_memory_per_block: 49152 shared_memory_per_core: 233472
  shared_memory_per_block_optin: 232448 threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_memory_size: 84942979072 registers_per_core_limit: 65536
  registers_per_block_limit: 65536 cuda_compute_capability { major: 9 minor: 0 }
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 patch: 0 }
runtime_version { major: 13 minor: 0 patch: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
OPTIONS: dict[str, bool | str] = {
    "xla_gpu_enable_latency_hiding_scheduler": True,
    "xla_gpu_enable_triton_gemm": False,
}


@pytest.fixture(scope="module")
def described_mesh():
    if not any(importlib.util.find_spec(f"jax_cuda{n}_plugin") for n in (12, 13)):
        pytest.skip("needs the wheels jax-cuda13-plugin and jax-cuda13-pjrt to compile for a GPU")
    described = topologies.get_topology_desc(
        platform="cuda", topology_name="h100", topology="2x1x4", target_config=H100
    )
    return topologies.make_mesh(described, (4, 2), tuple(MESH))


LAYERS, WIDTH, HIDDEN, BATCH = 10, 256, 512, 64


@pytest.fixture(scope="module")
def fsdp_text(described_mesh):
    """A training step of an MLP: weights split over both axes, the batch over data."""
    w = (
        abstract(described_mesh, (LAYERS, WIDTH, HIDDEN), None, "data", "model"),
        abstract(described_mesh, (LAYERS, HIDDEN, WIDTH), None, "model", "data"),
    )
    scalar = NamedSharding(described_mesh, P())

    @partial(jax.jit, out_shardings=(scalar, tuple(leaf.sharding for leaf in w)))
    def step(w, x):
        def loss(w):
            def block(h, layer):
                return jnp.tanh(h @ layer[0]) @ layer[1], None

            return jnp.mean(jax.lax.scan(block, x, w)[0] ** 2)

        value, gradient = jax.value_and_grad(loss)(w)
        return value, jax.tree.map(jnp.subtract, w, gradient)

    x = abstract(described_mesh, (BATCH, WIDTH), "data")
    return step.lower(w, x).compile(compiler_options=OPTIONS).as_text()


@pytest.fixture(scope="module")
def zoo_text(described_mesh):
    function, x = zoo(described_mesh)
    return jax.jit(function).lower(x).compile(compiler_options=OPTIONS).as_text()


def test_fsdp_on_described_h100s_says_what_arithmetic_says(fsdp_text):
    """Weights gathered forward and backward, gradients scattered, activations summed."""
    # What one model shard holds of one layer, whole along data: 256 x 256 twice, float32.
    layer_bytes = 2 * WIDTH * (HIDDEN // 2) * 4
    activation_bytes = (BATCH // 4) * WIDTH * 4
    rows = {(r.kind, *r.axes): r for r in traffic.traffic(fsdp_text, MESH)}
    assert {key: row.bytes for key, row in rows.items()} == {
        ("all-gather", "data"): 2 * LAYERS * layer_bytes,
        ("reduce-scatter", "data"): LAYERS * layer_bytes,
        ("all-reduce", "model"): 2 * LAYERS * activation_bytes,
        ("all-reduce", "data"): 4,  # the loss
    }
    assert all(row.exact and row.whole for row in rows.values())
    for key in (("all-gather", "data"), ("reduce-scatter", "data"), ("all-reduce", "model")):
        assert rows[key].count % LAYERS == 0


def test_every_collective_of_a_described_program_is_listed(fsdp_text, zoo_text):
    """A line that names groups or pairs is one collective: none missed, none counted twice."""
    for text, at_least in ((fsdp_text, 6), (zoo_text, 5)):
        lines = re.findall(r"(?:replica_groups|source_target_pairs)=", text)
        assert len(found(text)) == len(lines) >= at_least


def test_sources_of_a_described_program_are_lines_of_this_file(fsdp_text):
    """Also for the gradients' reduce-scatter, which the compiler combined and stripped."""
    collectives = found(fsdp_text)
    inside = [one for one in collectives if one.executions == LAYERS]
    assert len(inside) >= 3
    for one in inside:
        frame = one.frames[0]
        assert frame.file.endswith("test_collectives.py")
        # JAX 0.12 gives a collective that it moved to the scan's own line to the scan.
        line = linecache.getline(frame.file, frame.line)
        assert "jnp.tanh(h @ layer[0])" in line or "lax.scan(block" in line
    assert any(one.frames[0].function.endswith("block") for one in inside)
    scattered = [one for one in collectives if one.kind == "reduce-scatter"]
    assert scattered and all(one.op_name for one in scattered)


def test_every_kind_is_read_from_a_described_program(zoo_text):
    rows = {(r.kind, *r.axes): r for r in traffic.traffic(zoo_text, MESH)}
    assert {key: row.bytes for key, row in rows.items()} == ZOO_BYTES
    opcodes = {i.opcode for c in parse(zoo_text).computations.values() for i in c.instructions}
    # JAX 0.10 makes every kind asynchronous here, 0.12 leaves some as one instruction.
    assert all({kind, f"{kind}-start"} & opcodes for kind, *_ in ZOO_BYTES)
    assert any(one.is_async for one in found(zoo_text))
