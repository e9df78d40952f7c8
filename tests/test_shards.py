"""Who holds what, as it is drawn: JAX's own placement, on simulated devices."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxpar.core.mesh import entry_of
from jaxpar.report.drawing import Alike, array_drawing, mesh_drawing
from jaxpar.report.elements import words
from jaxpar.report.palette import KINDS, ink, shard_colour
from jaxpar.report.shards import Placement

MESHES = ({"data": 8}, {"data": 4, "model": 2}, {"data": 2, "pipe": 2, "model": 2}, {"data": 1})


@st.composite
def placements(draw):
    """Arrays of up to three dims, every axis over at most one of them, in any order."""
    mesh = draw(st.sampled_from(MESHES))
    rank = draw(st.integers(0, 3))
    axes = draw(st.permutations(list(mesh)))
    at = [draw(st.integers(0, 3)) for _ in axes]
    spec = tuple(tuple(a for a, dim in zip(axes, at, strict=True) if dim == d) for d in range(rank))
    return Placement((8, 16, 24)[:rank], ("rows", "up", "down")[:rank], spec, mesh)


def jaxs(placement):
    """(first index of each dim) -> the devices that have that shard, as JAX places it."""
    sizes = tuple(placement.mesh.values())
    mesh = Mesh(np.array(jax.devices()[: placement.devices]).reshape(sizes), tuple(placement.mesh))
    spec = PartitionSpec(*(entry_of(axes) for axes in placement.spec))
    number = {device: at for at, device in enumerate(mesh.devices.flat)}
    found: dict[tuple[int, ...], set[int]] = {}
    slices = NamedSharding(mesh, spec).devices_indices_map(placement.shape)
    for device, index in slices.items():
        found.setdefault(tuple(s.start or 0 for s in index), set()).add(number[device])
    return found


@given(placements())
@settings(max_examples=60, deadline=None)
def test_devices_hold_what_jax_gives_them(placement):
    """Every shard, with its first index along each dim and all the devices that have it."""
    expected = jaxs(placement)
    assert placement.shards == len(expected)
    for first, devices in expected.items():
        steps = zip(first, placement.shard_shape, strict=True)
        shard = [start // size for start, size in steps]
        assert set(placement.held_by(shard)) == devices
        for dim, (start, place) in enumerate(zip(first, shard, strict=True)):
            assert placement.rows(dim, place).startswith(f"{start}")


def test_a_drawing_says_who_holds_which_rows():
    """By hand: 8 x 4 over data=2, model=2; columns by model, so devices 0 and 2 have the first."""
    placement = Placement((8, 4), ("embed", "ffn"), ((), ("model",)), {"data": 2, "model": 2})
    drawn = array_drawing(Alike(placement, ("up", "gate"), 128, 64))
    cells = [cell for cell in drawn.iter("td")]
    assert [cell.text for cell in cells] == ["0, 2", "1, 3"]
    assert cells[1].get("title") == "devices 1, 3 hold embed 0-7, ffn 2-3"
    assert len({cell.get("style") for cell in cells}) == 2
    assert "the same over data" in words(drawn) and "up and 1 more" in words(drawn)


@pytest.mark.parametrize(
    "mesh", [{"data": 64, "model": 8}, {"replica": 128, "data": 8, "model": 8}]
)
def test_a_large_mesh_is_drawn_small_and_says_its_size(mesh):
    """The first devices, the last, and what lies between is not drawn."""
    count = int(np.prod(list(mesh.values())))
    drawn = mesh_drawing(mesh)
    numbers = [cell.text for cell in drawn.iter("td")]
    assert len(numbers) <= 64 and numbers[0] == "0" and numbers[-1] == str(count - 1)
    assert f"{count:,} devices" in words(drawn)
    placement = Placement((2**16, 2**16), ("a", "b"), (tuple(mesh), ()), mesh)
    shown = [cell.text for cell in array_drawing(Alike(placement, ("w",), 8, 8)).iter("td")]
    assert shown[0] == "0" and shown[-1] == str(count - 1) and len(shown) <= 8


# Viénot, Brettel, Mollon 1999: linear RGB as people without L or M cones see it.
PROTAN = np.array([[0.11238, 0.88762, 0.0], [0.11238, 0.88762, 0.0], [0.00401, -0.00401, 1.0]])
DEUTAN = np.array([[0.29275, 0.70725, 0.0], [0.29275, 0.70725, 0.0], [-0.02234, 0.02234, 1.0]])
TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def lab(colour: str, seen: np.ndarray) -> np.ndarray:
    """CIELAB of a colour as it is seen."""
    channels = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    xyz = TO_XYZ @ np.clip(seen @ linear, 0, 1) / np.array([0.9505, 1.0, 1.089])
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("seen", [np.eye(3), PROTAN, DEUTAN], ids=["all", "protan", "deutan"])
def test_kinds_are_told_apart_by_all_readers(seen):
    """Colours of a chart differ by 10 in CIELAB at least; 2.3 is just noticed."""
    seen_as = [lab(colour, seen) for colour in KINDS]
    pairs = [
        (float(np.linalg.norm(a - b)), KINDS[i], KINDS[j])
        for i, a in enumerate(seen_as)
        for j, b in enumerate(seen_as[:i])
    ]
    assert min(pairs)[0] > 10, min(pairs)


def test_text_on_a_shard_can_be_read():
    """A contrast of 4.5 at least, as WCAG asks, on every colour of few shards and of many."""
    for count in (2, 8, 64):
        for number in range(count):
            colour = shard_colour(number, count)
            light, dark = (
                float((lab(c, np.eye(3))[0] + 16) / 116) ** 3 for c in (colour, ink(colour))
            )
            contrast = (max(light, dark) + 0.05) / (min(light, dark) + 0.05)
            assert contrast >= 4.4, (colour, contrast)
