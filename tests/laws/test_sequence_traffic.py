"""A split residual: each all-reduce of tensor parallelism is a reduce-scatter and an all-gather.

On a described H100's programs, since XLA for CPUs spells a reduce-scatter as an all-reduce and a
slice. The counts are worked out by hand; only the program is the compiler's.
"""

from itertools import product

import pytest
from test_traffic import FLOAT, bytes_in, inspected, on_h100

pytestmark = pytest.mark.usefixtures("drawn_once")

STRATEGIES = ("sequence", "fsdp+sequence")
# (activations summed by tensor, scattered, gathered): a layer, and beside the layers.
COUNTS = {
    "none": ((4, 4, 4), (2, 2, 2)),
    "minimal": ((4, 4, 6), (2, 2, 2)),
    "full": ((5, 5, 6), (2, 2, 2)),
}
"""With everything kept: two a layer forward and two backward, one after the embedding and one
before the head. When a layer is computed again, attention's sum is made again, but not that of the
feed-forward part, which nobody reads; both its gathered inputs are read, to make gradients of.
Where what products make is kept, only these are gathered again."""


def sized(inspection) -> tuple[int, int]:
    """Bytes of one activation (rows, sequence, width) of a device along data, and of a position."""
    model, mesh = inspection.layout.model, inspection.layout.mesh
    ways = mesh.size("data") if inspection.layout.batch["tokens"][0] else 1
    positions = model.batch_size // ways * model.config.sequence * FLOAT
    return positions * model.config.width, positions


@pytest.mark.parametrize(
    ("hardware", "strategy", "remat"), [on_h100(s, r) for s, r in product(STRATEGIES, COUNTS)]
)
def test_scatters_and_gathers_stand_where_tensor_parallelism_sums(hardware, strategy, remat):
    """Over model: as many bytes scattered, and gathered, as tensor parallelism all-reduces."""
    inspection = inspected("transformer", strategy, hardware=hardware, remat=remat)
    layers = inspection.layout.model.config.layers
    activation, _ = sized(inspection)
    _, scattered, gathered = (layers * a + b for a, b in zip(*COUNTS[remat], strict=True))
    assert bytes_in(inspection, "reduce-scatter", "model") == scattered * activation
    assert bytes_in(inspection, "all-gather", "model") == gathered * activation
    assert inspection.ok


@pytest.mark.parametrize(("hardware", "remat"), [on_h100(remat) for remat in COUNTS])
def test_tensor_parallelism_sums_what_it_is_compared_with(hardware, remat):
    """The other half of the comparison: the same model's all-reduces, without the split residual.

    Five numbers a position are left over, for the loss over a split vocabulary.
    """
    inspection = inspected("transformer", "tensor", hardware=hardware, remat=remat)
    layers = inspection.layout.model.config.layers
    activation, position = sized(inspection)
    (a, _, _), (b, _, _) = COUNTS[remat]
    assert bytes_in(inspection, axis="model") == (layers * a + b) * activation + 5 * position


@pytest.mark.parametrize("hardware", [on_h100()])
def test_what_is_all_reduced_is_the_loss_and_the_norms_gradients(hardware):
    """Five numbers a position for a split vocabulary, and a vector of the width for each norm."""
    inspection = inspected("transformer", "sequence", hardware=hardware)
    config = inspection.layout.model.config
    norms = (2 * config.layers + 1) * config.width * FLOAT
    _, position = sized(inspection)
    assert bytes_in(inspection, "all-reduce", "model") == norms + 5 * position
