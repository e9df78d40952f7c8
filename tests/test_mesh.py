"""Mesh shapes as plain values, and the faults that a spec can have on one."""

import pytest
from jax.sharding import PartitionSpec as P

from jaxpar.core.errors import LayoutError, RequestError, sizes_that_work
from jaxpar.core.mesh import AXES, MeshShape, axes_of, check_spec, refuse_faults, shards, sizes_of


@pytest.mark.parametrize(
    ("text", "sizes"),
    [
        ("data=4,model=2", {"data": 4, "model": 2}),
        (" data = 4 , model = 2 ", {"data": 4, "model": 2}),
        ("model=8", {"data": 1, "model": 8}),
        ("model=2,data=4", {"model": 2, "data": 4}),
        ("", {"data": 1, "model": 1}),
    ],
)
def test_a_mesh_is_read_outermost_axis_first(text, sizes):
    """The order typed is the order of the devices; an axis left out has size 1."""
    mesh = MeshShape.parse(text)
    assert list(sizes_of(mesh).items()) == list(sizes.items())
    assert MeshShape.parse(str(mesh)) == mesh
    assert mesh.abstract.axis_names == mesh.axes
    assert mesh.abstract.size == mesh.devices


def test_meshes_are_equal_when_their_large_axes_are_in_one_order():
    """Size 1 has no place in the order; sizes above 1 have."""
    assert MeshShape(data=4) == MeshShape(data=4, model=1) == MeshShape(model=1, data=4)
    assert hash(MeshShape(data=4)) == hash(MeshShape(model=1, data=4))
    assert MeshShape(data=4, model=2) != MeshShape(model=2, data=4)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("dta=2", "unknown mesh axis 'dta': did you mean 'data'"),
        ("data=0", "size 0: a size is a whole number of devices, at least 1"),
        ("data=-2", "size -2"),
        ("data=two", "is not axis=size"),
        ("data=2.5", "is not axis=size"),
        ("data=--2", "is not axis=size"),
        ("data", "is not axis=size"),
        ("data=2,data=2", "twice"),
    ],
)
def test_a_mesh_that_is_none_is_refused(text, sentence):
    """A RequestError with the repair, whatever was typed."""
    with pytest.raises(RequestError, match=sentence):
        MeshShape.parse(text)


def test_faults_name_the_dim_both_sizes_and_the_nearest_that_work():
    """60 over 8: 6 and 10 are the divisors of 60 next to 8, 56 and 64 the multiples of 8."""
    mesh = MeshShape(data=4, model=8)
    faults = check_spec((16, 60), ("embed", "ffn"), P(None, "model"), mesh)
    assert len(faults) == 1
    for word in ("'ffn'", "60", "'model'", "8 devices", "6 or 10", "56 and 64"):
        assert word in faults[0]
    with pytest.raises(LayoutError, match="does not divide 60"):
        refuse_faults({"up": faults})


def test_a_dim_over_two_axes_is_divided_by_their_product():
    """12 devices on a dim of 16: neither axis alone is at fault."""
    mesh = MeshShape(data=4, model=3)
    (fault,) = check_spec((16,), ("a",), P(("data", "model")), mesh)
    assert "12 devices" in fault and "'data' x 'model'" in fault
    assert check_spec((24,), ("a",), P(("data", "model")), mesh) == []


def test_one_axis_on_two_dims_is_a_fault_that_names_both():
    """Unless the axis has one device, when nothing is split."""
    dims = ("a", "b")
    (fault,) = check_spec((4, 4), dims, P("model", "model"), MeshShape(model=2))
    assert "both dim 'a' and dim 'b'" in fault
    assert check_spec((4, 4), dims, P("model", "model"), MeshShape(data=2)) == []


def test_shards_multiply_over_every_axis_of_a_spec():
    """4 x 2 shards for both axes, however they are spelled."""
    mesh = MeshShape(data=4, model=2)
    counts = [shards(s, mesh) for s in (P(), P("data"), P("data", "model"), P(("data", "model")))]
    assert counts == [1, 4, 8, 8]
    assert axes_of(None) == () and axes_of("data") == ("data",) == axes_of(("data",))


def test_arrays_with_one_fault_are_named_together():
    """One repair is said once, with the first four arrays and how many more there are."""
    with pytest.raises(LayoutError, match=r"^a, b, c, d and 1 more: too long; e: too wide$"):
        refuse_faults({name: ["too long"] for name in "abcd"} | {"e": ["too long", "too wide"]})
    refuse_faults({"a": []})


@pytest.mark.parametrize("size", range(1, 40))
@pytest.mark.parametrize("wanted", [2, 3, 7, 8, 64])
def test_the_sizes_offered_instead_do_work(size, wanted):
    """Every repair that the sentence offers is one: divisors divide, multiples are divided."""
    if size % wanted == 0:
        return
    counts, _, sizes = sizes_that_work(size, wanted).partition(f", and {wanted} divides ")
    divisors = [int(word) for word in counts.split() if word.isdigit()]
    multiples = [int(word) for word in sizes.split() if word.isdigit()]
    assert divisors and all(size % divisor == 0 for divisor in divisors)
    assert multiples and all(multiple % wanted == 0 for multiple in multiples)
    assert all(abs(multiple - size) < wanted for multiple in multiples)


def test_the_axes_are_those_of_the_design():
    """Adding one is a decision: it needs strategies, laws and a word in the design."""
    assert AXES == ("replica", "pipe", "data", "model")
