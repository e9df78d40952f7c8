"""A split residual: each all-reduce of tensor parallelism is a reduce-scatter and an all-gather.

On a described H100's programs, since XLA for CPUs spells a reduce-scatter as an all-reduce and a
slice. The counts are worked out by hand; only the program is the compiler's.
"""

import pytest
from test_traffic import FLOAT, H100, bytes_in, inspected

MESHES = {"sequence": "model=8", "fsdp+sequence": "data=4,model=2"}
# (activations summed by tensor, scattered, gathered): a layer, and beside the layers.
COUNTS = {"none": ((4, 4, 4), (2, 2, 2)), "full": ((5, 5, 6), (2, 2, 2))}
"""With everything kept: two a layer forward and two backward, one after the embedding and one
before the head. When a layer is computed again, attention's sum is made again, but not that of the
feed-forward part, which nobody reads; both its gathered inputs are read, to make gradients of."""


def sized(inspection) -> tuple[int, int]:
    """Bytes of one activation (rows, sequence, width) of a device along data, and of a position."""
    model, mesh = inspection.layout.model, inspection.layout.mesh
    ways = mesh.size("data") if inspection.layout.batch["tokens"][0] else 1
    positions = model.batch_size // ways * model.config.sequence * FLOAT
    return positions * model.config.width, positions


@pytest.mark.parametrize("remat", COUNTS)
@pytest.mark.parametrize("strategy", MESHES)
@pytest.mark.parametrize("hardware", [H100])
def test_scatters_and_gathers_stand_where_tensor_parallelism_sums(hardware, strategy, remat):
    """Over model: as many bytes scattered, and gathered, as tensor parallelism all-reduces."""
    inspection = inspected(
        "transformer", strategy, hardware=hardware, mesh=MESHES[strategy], remat=remat
    )
    layers = inspection.layout.model.config.layers
    activation, _ = sized(inspection)
    _, scattered, gathered = (layers * a + b for a, b in zip(*COUNTS[remat], strict=True))
    assert bytes_in(inspection, "reduce-scatter", "model") == scattered * activation
    assert bytes_in(inspection, "all-gather", "model") == gathered * activation
    assert inspection.ok


@pytest.mark.parametrize("remat", COUNTS)
@pytest.mark.parametrize("hardware", [H100])
def test_tensor_parallelism_sums_what_it_is_compared_with(hardware, remat):
    """The other half of the comparison: the same model's all-reduces, without the split residual.

    Five numbers a position are left over, for the loss over a split vocabulary.
    """
    inspection = inspected("transformer", "tensor", hardware=hardware, mesh="model=8", remat=remat)
    layers = inspection.layout.model.config.layers
    activation, position = sized(inspection)
    (a, _, _), (b, _, _) = COUNTS[remat]
    assert bytes_in(inspection, axis="model") == (layers * a + b) * activation + 5 * position


@pytest.mark.parametrize("hardware", [H100])
def test_what_is_all_reduced_is_the_loss_and_the_norms_gradients(hardware):
    """Five numbers a position for a split vocabulary, and a vector of the width for each norm."""
    inspection = inspected("transformer", "sequence", hardware=hardware, mesh="model=8")
    config = inspection.layout.model.config
    norms = (2 * config.layers + 1) * config.width * FLOAT
    _, position = sized(inspection)
    assert bytes_in(inspection, "all-reduce", "model") == norms + 5 * position
