"""Laws of the rates: tables are met where they speak, more work takes longer, bounds are kept."""

import csv
from dataclasses import fields, replace
from importlib.resources import files
from math import prod
from operator import ge

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jaxpar.core.catalogue import HARDWARE
from jaxpar.core.errors import RequestError
from jaxpar.costs.links import collective_seconds, sent_share
from jaxpar.costs.rates import Device
from jaxpar.hardware import measured
from jaxpar.hardware.own import FIGURES, hardware_of, with_figures
from jaxpar.hardware.record import Rates
from jaxpar.hlo.collectives import Collective
from jaxpar.hlo.products import FusedAttention, Product
from jaxpar.measures.links import moved

DESCRIBED = [name for name in HARDWARE.names() if HARDWARE.load(name)().kind == "described"]
DEVICES = {name: Device(HARDWARE.load(name)()) for name in DESCRIBED}
H100 = DEVICES["h100"]

sizes = st.integers(1, 1 << 15)
devices = st.sampled_from(DESCRIBED)


def product(batch, m, n, k, dtype="bf16") -> Product:
    return Product(dtype, batch, m, n, k, 2 * batch * (m * k + k * n + m * n))


def collective(kind: str, size_bytes: int, groups, pairs=()) -> Collective:
    return Collective(
        name="c", kind=kind, groups=groups, pairs=pairs, bytes_each=size_bytes, executions=1,
        exact=True, is_async=True, op_name="", frames=(), borrowed=False, operands=(),
        computation="main",
    )  # fmt: skip


def rows(device: str, what: str) -> list[dict[str, str]]:
    path = files(measured).joinpath(f"{device}_{what}.csv")
    return list(csv.DictReader(path.read_text().splitlines()))


@pytest.mark.parametrize("name", DESCRIBED)
def test_every_figure_of_described_hardware_has_a_source(name):
    """And all that is needed to predict."""
    hardware = HARDWARE.load(name)()
    assert hardware.rates and hardware.rates.source and hardware.reached
    assert hardware.reached.source and hardware.source and hardware.devices_per_node
    assert rows(measured.origin(hardware.reached.tables, "products"), "products")


def test_a_measured_product_takes_what_was_measured():
    """Of the H100's own table, but for the launch, the clock of long steps and the slowest; where a
    larger one was measured quicker, no more than that."""
    reached, table = H100.reached, rows("h100", "products")

    def sizes_of(row):
        return [int(row[name]) for name in ("batch", "m", "n", "k")]

    def alone(row):
        """Seconds that were measured, but for two of FLOPs and tera."""
        return prod(sizes_of(row)) / float(row["tflops_per_second"])

    def is_larger(other, row):
        return other["dtype"] == row["dtype"] and all(map(ge, sizes_of(other), sizes_of(row)))

    for row in table[::7]:
        batch, m, n, k = sizes_of(row)
        quickest = min(alone(other) for other in table if is_larger(other, row))
        one = product(batch, m, n, k, "bf16" if row["dtype"] == "bfloat16" else "f32")
        peak = H100.peak(one.dtype)
        best = measured.products("h100")[row["dtype"]].best
        share = 1e12 * prod(sizes_of(row)) / quickest / best * reached.products * peak
        seconds = one.flops / share / reached.sustained * reached.slowest
        seconds = max(seconds, one.bytes / H100.memory_bytes_per_second)
        assert H100.product_seconds(one) == pytest.approx(seconds + reached.launch_seconds)


def test_a_measured_collective_takes_what_was_measured():
    """In a node of the H100's own table, at its larger sizes, where noise is small."""
    for row in rows("h100", "collectives"):
        size, group = int(row["bytes"]), int(row["group_size"] or 0)
        if group and size >= 1 << 26:
            groups = tuple(tuple(range(s, s + group)) for s in range(0, 8, group))
            seconds = collective_seconds(collective(row["kind"], size, groups), H100)
            assert seconds == pytest.approx(1e-6 * float(row["microseconds"]), rel=0.02)


def test_every_measured_table_is_read_by_some_hardware():
    """A table that none reads would be a measurement that no prediction knows of."""
    read = {
        f"{measured.origin(device.reached.tables, what)}_{what}.csv"
        for device in DEVICES.values()
        for what in ("products", "collectives", "attention")
    }
    assert {path.name for path in files(measured).iterdir() if path.name.endswith("csv")} <= read


def test_a_domain_of_72_takes_what_was_measured_in_it():
    """Of the GB200: a large domain's collectives have a latency that eight devices have not."""
    one = collective("all-gather", 1 << 10, groups_of((1, 72, 1)))
    least = min(
        float(row["microseconds"])
        for row in rows("gb200", "collectives")
        if (row["kind"], row["group_size"]) == (one.kind, "72")
    )
    assert collective_seconds(one, DEVICES["gb200"]) == pytest.approx(1e-6 * least, rel=0.02)


def test_a_last_node_that_is_not_full_counts_as_one():
    """Latency is that of the nodes which a ring passes, however many members each has."""
    hardware = replace(H100.hardware, devices_per_node=6)
    ragged, even = (
        collective_seconds(collective("all-gather", 1 << 10, (tuple(range(n)),)), Device(hardware))
        for n in (6 * 20 + 2, 6 * 21)
    )
    assert ragged <= even


@example("a100", 1, 1, 1, 1248, 3)
@given(devices, st.integers(1, 64), sizes, sizes, sizes, st.integers(0, 3))
def test_a_larger_product_never_takes_less_and_none_beats_the_peak(name, batch, m, n, k, grown):
    """Along each size of a product."""
    device, shape = DEVICES[name], [batch, m, n, k]
    more = [2 * size if i == grown else size for i, size in enumerate(shape)]
    seconds = device.product_seconds(product(*shape))
    assert device.product_seconds(product(*more)) >= seconds * (1 - 1e-9)
    assert seconds >= product(*shape).flops / device.peak("bf16")
    assert seconds >= product(*shape).bytes / device.rates.memory_bytes_per_second


@given(devices, st.integers(1, 64), st.integers(7, 15), st.sampled_from([64, 128, 256]),
       st.booleans(), st.booleans())  # fmt: skip
def test_attention_never_beats_the_peak_and_grows(name, rows, power, head, causal, backward):
    """Twice the sequence is four times the scores."""
    device = DEVICES[name]

    def seconds(length):
        one = FusedAttention(
            "bf16", rows, 8, length, length, head, causal, backward, 8 * rows * length * 8 * head
        )
        assert device.attention_seconds(one) >= one.flops / device.peak("bf16")
        return device.attention_seconds(one)

    assert seconds(2 << power) > seconds(1 << power)


def groups_of(shape: tuple[int, int, int]) -> tuple[tuple[int, ...], ...]:
    """Groups over the middle axis of a mesh, inner devices next to each other."""
    outer, size, inner = shape
    return tuple(
        tuple(o * size * inner + s * inner + i for s in range(size))
        for o in range(outer)
        for i in range(inner)
    )


meshes = st.tuples(
    st.sampled_from([1, 2]), st.sampled_from([2, 4, 8, 16, 32]), st.sampled_from([1, 2, 4, 8])
)
KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all")


@settings(max_examples=60)
@given(devices, st.sampled_from(KINDS), st.integers(10, 31), meshes)
def test_more_bytes_never_take_less_and_links_keep_their_rates(name, kind, power, mesh):
    """No collective beats the fewest bytes that any algorithm moves."""
    device, groups = DEVICES[name], groups_of(mesh)
    one = collective(kind, 1 << power, groups)
    seconds = collective_seconds(one, device)
    assert collective_seconds(replace(one, bytes_each=2 << power), device) >= seconds
    node = device.hardware.devices_per_node or 1
    least = moved(one, node)
    assert seconds >= least.device_bytes / device.rates.link_bytes_per_second
    assert seconds >= least.node_bytes / (node * device.rates.network_bytes_per_second)


@pytest.mark.parametrize("figure", [f.name for f in fields(Rates) if f.type is float])
@pytest.mark.parametrize("kind", [*KINDS, "collective-permute"])
def test_twice_a_rate_is_never_slower(figure, kind):
    """Of the memory, the links and the network, for work and for collectives of every kind."""
    hardware = H100.hardware
    rates = replace(H100.rates, **{figure: 2 * getattr(H100.rates, figure)})
    fast = Device(replace(hardware, rates=rates))
    pairs = ((0, 1), (1, 8), (8, 0))
    for size in (1 << 12, 1 << 20, 1 << 30):
        for groups in (groups_of((1, 8, 1)), groups_of((1, 4, 8))):
            one = collective(kind, size, () if "permute" in kind else groups,
                             pairs if "permute" in kind else ())  # fmt: skip
            assert collective_seconds(one, fast) <= collective_seconds(one, H100)
        assert fast.memory_seconds(size) <= H100.memory_seconds(size)
        one = product(1, size >> 10 or 1, 1024, 1024)
        assert fast.product_seconds(one) <= H100.product_seconds(one)


def test_a_group_with_more_members_a_node_uses_more_adapters():
    """Sixteen devices in two nodes are quicker than two devices in two, whatever they gather."""
    wide = collective("all-gather", 1 << 30, groups_of((1, 16, 1)))
    thin = collective("all-gather", 1 << 30, groups_of((1, 2, 8)))
    assert collective_seconds(wide, H100) < 0.4 * collective_seconds(thin, H100)
    assert sent_share("all-gather", 16) > sent_share("all-gather", 2)


@pytest.mark.parametrize(
    ("name", "devices", "each"),
    [("gb200", 512, 64), ("gb200", 72, 72), ("gb200", 8, 72), ("h100", 12, 6), ("h100", 17, 8)],
)
def test_devices_that_do_not_fill_nodes_are_spread_evenly_where_that_divides(name, devices, each):
    """In the fewest nodes that hold them; or a few in the last node would set the pace of all."""
    assert HARDWARE.load(name)().placed(devices).devices_per_node == each


def test_figures_can_be_told_otherwise(tmp_path):
    """One by one and in a file; what makes no sense is refused in a sentence."""
    slow = with_figures(H100.hardware, {"nic_bytes_per_second": 25e9, "devices_per_node": 4})
    assert slow.rates and slow.rates.network_bytes_per_second == 25e9
    assert slow.devices_per_node == 4
    file = tmp_path / "ours.json"
    file.write_text('{"like": "h100", "figures": {"network_bytes_per_second": 25e9}}')
    assert hardware_of(str(file)).rates == slow.rates and hardware_of(str(file)).name == "ours"
    for told in ({"speed": 1}, {"memory": 0}, {"memory": True}, {"memory": float("nan")},
                 {"memory": "fast"}, {"memory": 1.1}, {"usable": 5}, {"crowding": 0.9},
                 {"network_bytes_per_second": 1e-300}, {"devices_per_node": 2.5}):  # fmt: skip
        with pytest.raises(RequestError, match="figure of hardware|above 0|1 or more|whole number"):
            with_figures(H100.hardware, told)
    with pytest.raises(RequestError, match="no speed to change"):
        with_figures(HARDWARE.load("cpu")(), {"memory": 0.5})
    for text in ("", "[]", "{}", '{"like": 3}', '{"like": "h100", "figures": []}',
                 '{"like": "h100", "speed": 1}', '{"like": "h100", "name": "a\\nb"}',
                 '{"like": "h100", "name": " "}'):  # fmt: skip
        file.write_text(text)
        with pytest.raises(RequestError, match="ours.json"):
            hardware_of(str(file))
    assert "network_bytes_per_second" in FIGURES
    assert with_figures(H100.hardware, {"memory_bytes": 80e9}).memory_bytes == 80_000_000_000
