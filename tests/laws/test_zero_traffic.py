"""ZeRO's stages and replicas across nodes: the papers' communication volumes, to the byte.

P is the bytes of the parameters that are sharded, as large as they are in use on a device; what
stays whole, and four scalars, are all-reduced. Rajbhandari et al. (2020) for the stages.
"""

import pytest
from small import MODES
from test_traffic import FLOAT, bytes_in, inspected, on_both, scalars

from jaxpar.core.mesh import axes_of

pytestmark = pytest.mark.usefixtures("drawn_once")

COPIES = "replica=2,data=4"


def used_bytes(inspection, *, sharded, times=1):
    """Bytes of parameters in use on a device: of those that are stored sharded, or the others.

    Stacked layers count `times` times.
    """
    total = 0
    for a in inspection.layout.parameters.values():
        if sharded == (a.optimizer_state != a.used):
            ways = 1
            for entry in a.used:
                for axis in axes_of(entry):
                    ways *= inspection.layout.mesh.size(axis)
            total += a.whole_bytes // ways * (times if a.dims[0] == "layers" else 1)
    return total


def bytes_in_kind(inspection, kind, axis="data"):
    """Bytes of `kind` over `axis` and no other."""
    return sum(r.bytes for r in inspection.collectives if (r.kind, r.axes) == (kind, (axis,)))


def assert_whole_arrays_and_scalars(inspection, found):
    """`found` is what stays replicated and the loss's and accuracy's totals and weight.

    Manual mode knows that the two weights are one.
    """
    over, most = found - used_bytes(inspection, sharded=False), scalars(inspection)
    assert most - FLOAT <= over <= most, over


@pytest.mark.parametrize(
    ("hardware", "strategy", "mode", "microbatches"), on_both(["zero2+tensor"], MODES, (1, 2))
)
def test_zero2_scatters_each_microbatch_and_gathers_once(hardware, strategy, mode, microbatches):
    """A reduce-scatter of P a microbatch, an all-gather of P a step; no all-reduce of the sharded.

    XLA for CPUs spells auto mode's scatter as an all-reduce of P and a slice.
    """
    found = inspected(
        "transformer", strategy, hardware=hardware, mode=mode, microbatches=microbatches
    )
    sharded = used_bytes(found, sharded=True)
    assert bytes_in_kind(found, "all-gather") == sharded > 0
    spelled_out = (hardware, mode) == ("cpu", "auto")
    assert bytes_in_kind(found, "reduce-scatter") == (0 if spelled_out else microbatches * sharded)
    reduced = bytes_in_kind(found, "all-reduce") - (microbatches * sharded if spelled_out else 0)
    if microbatches == 1:
        assert_whole_arrays_and_scalars(found, reduced)
    else:
        assert reduced <= 2 * (used_bytes(found, sharded=False) + scalars(found))
    assert bytes_in_kind(found, "all-to-all") == bytes_in_kind(found, "collective-permute") == 0


@pytest.mark.parametrize(("hardware", "strategy", "mode"), on_both(["zero1"], MODES))
def test_zero1_scatters_gradients_and_gathers_weights(hardware, strategy, mode):
    """Reduce-scatter P and all-gather P: a ring sends so much for the all-reduce of plain data."""
    found = inspected("transformer", strategy, hardware=hardware, mode=mode)
    sharded = used_bytes(found, sharded=True)
    assert bytes_in_kind(found, "all-gather") == sharded > 0
    spelled_out = (hardware, mode) == ("cpu", "auto")
    assert bytes_in_kind(found, "reduce-scatter") == (0 if spelled_out else sharded)
    assert_whole_arrays_and_scalars(
        found, bytes_in_kind(found, "all-reduce") - (sharded if spelled_out else 0)
    )


@pytest.mark.parametrize(("hardware", "vocabulary"), on_both([1024, 32]))
def test_rows_of_a_large_table_travel_instead_of_the_table(hardware, vocabulary):
    """Auto mode: each device looks all rows up in its columns, and an all-to-all hands them out,
    forward and backward; a table smaller than a device's rows is gathered."""
    found = inspected(
        "transformer", "fsdp", hardware=hardware, mesh="data=8", vocabulary=vocabulary
    )
    config, layout = found.layout.model.config, found.layout
    rows = layout.model.batch_size // 8 * config.sequence * config.width * FLOAT
    travels = vocabulary * config.width * FLOAT > rows
    assert bytes_in_kind(found, "all-to-all") == (2 * rows if travels else 0)
    assert found.ok
    if hardware == "h100":  # where layers are gathered twice and the rest once
        outside = {"embedding"} if travels else set()
        sizes = {p: a.size * (2 if "blocks" in p else 1) for p, a in layout.parameters.items()}
        expected = sum(
            size
            for path, size in sizes.items()
            if path not in outside
            and layout.parameters[path].stored != layout.parameters[path].used
        )
        ids = layout.model.batch_size * config.sequence if travels else 0
        assert bytes_in_kind(found, "all-gather") == (expected + ids) * FLOAT


@pytest.mark.parametrize("mode", MODES)
def test_zero1_sums_gradients_of_microbatches_once(mode):
    """They add up on each device and are scattered at the end; explicit mode all-reduces each."""
    found = inspected("mlp", "zero1", mesh="data=8", mode=mode, microbatches=2)
    sharded, whole = used_bytes(found, sharded=True), used_bytes(found, sharded=False)
    assert bytes_in_kind(found, "all-gather") == sharded > 0
    scattered = sharded if mode == "manual" else 0
    assert bytes_in_kind(found, "reduce-scatter") == scattered
    sums = {"auto": 1, "manual": 0, "explicit": 2}[mode]
    rest = bytes_in_kind(found, "all-reduce") - sums * sharded
    assert 0 <= rest <= max(1, sums) * whole + 2 * scalars(found)


@pytest.mark.parametrize(("hardware", "strategy"), on_both(["replica+fsdp", "replica+zero2"]))
@pytest.mark.parametrize("mode", ["auto", "manual"])
def test_replicas_sum_the_shards_of_what_is_sharded_inside(hardware, strategy, mode):
    """Over data as without replicas, over replica an all-reduce of P / data.

    What stays replicated is summed over both. XLA for CPUs spells auto mode's scatter as an
    all-reduce and a slice.
    """
    found = inspected("transformer", strategy, hardware=hardware, mesh=COPIES, mode=mode)
    sharded, whole = used_bytes(found, sharded=True), used_bytes(found, sharded=False)
    spelled_out = (hardware, mode) == ("cpu", "auto")
    assert bytes_in_kind(found, "reduce-scatter") == (0 if spelled_out else sharded)
    over_replica = bytes_in_kind(found, "all-reduce", "replica") - sharded // 4
    if mode == "auto":  # whose scalars and replicated arrays are summed over one axis, then another
        over_data = bytes_in_kind(found, "all-reduce", "data") - (sharded if spelled_out else 0)
        assert whole <= over_replica <= whole + scalars(found)
        assert whole <= over_data <= whole + scalars(found)
        return
    assert over_replica == 0
    assert_whole_arrays_and_scalars(found, bytes_in(found, "all-reduce", "data"))
    if hardware == "h100":  # XLA for CPUs merges the second gather of layers in a row
        layers = 2 if "fsdp" in strategy else 1
        assert bytes_in_kind(found, "all-gather") == used_bytes(found, sharded=True, times=layers)
