"""lay_out by example: what is sharded, what stays replicated, and what is refused."""

from dataclasses import replace
from typing import Any, cast

import pytest
from jax.sharding import PartitionSpec as P
from small import small_model, small_strategy

from jaxpar.case import load_strategy
from jaxpar.core.catalogue import MODELS, STRATEGIES
from jaxpar.core.errors import LayoutError, RequestError
from jaxpar.core.mesh import MeshShape
from jaxpar.layout.lay_out import lay_out
from jaxpar.strategies.record import Strategy, combine


def laid(model, strategy, mesh):
    return lay_out(model, strategy=strategy, mesh=MeshShape.parse(mesh))


def test_tensor_parallelism_pairs_columns_with_rows():
    """Megatron's pairing by hand: up by columns, down by rows, norms and residual replicated."""
    arrays = laid(small_model("transformer"), small_strategy("tensor"), "model=4").parameters
    stored = {path: array.stored for path, array in arrays.items()}
    assert stored["blocks/up"] == P(None, None, "model")  # layers, embed, ffn
    assert stored["blocks/down"] == P(None, "model", None)  # layers, ffn, embed
    assert stored["blocks/qk"] == P(None, None, "model", None, None)  # layers, embed, kv_heads
    assert stored["blocks/out"] == P(None, "model", None, None, None)
    assert stored["embedding"] == P("model", None)
    assert stored["head"] == P(None, "model")
    assert stored["blocks/attention_norm/scale"] == P(None, None)


def test_fsdp_shards_what_tensor_parallelism_leaves_alone_and_gathers_it():
    """Over data the residual width is sharded in storage and replicated in use."""
    layout = laid(small_model("transformer"), small_strategy("fsdp+tensor"), "data=4,model=2")
    up = layout.parameters["blocks/up"]
    assert up.stored == P(None, "data", "model")
    assert up.used == P(None, None, "model")
    assert layout.batch["tokens"] == P("data", None)
    assert up.device_bytes(layout.mesh) * 8 == up.whole_bytes


def test_small_arrays_stay_replicated_and_the_layout_lists_them():
    """The threshold counts one layer's elements, and the note gives the share of the bytes."""
    layout = laid(small_model("transformer"), load_strategy("fsdp"), "data=4")
    assert all(a.stored == a.used for a in layout.parameters.values())
    (note,) = layout.notes
    assert "fewer than 16,384 elements stay replicated over data" in note and "100.00%" in note
    for path in layout.parameters:
        assert path in note


def test_a_mesh_that_does_not_divide_is_refused_before_anything_is_made():
    """Dim, both sizes and the repair, for a parameter rather than for its optimizer state."""
    with pytest.raises(
        LayoutError, match=r"'ffn' has size 64.*'model' has 3 devices.*2 or 4"
    ) as no:
        laid(small_model("transformer"), small_strategy("tensor"), "model=3")
    assert "optimizer_state" not in str(no.value) and "optimizer" not in str(no.value)


def test_more_model_shards_than_heads_are_refused():
    """No head is split."""
    with pytest.raises(LayoutError, match="'kv_heads' has size 2 but mesh axis 'model' has 4"):
        laid(small_model("transformer", kv_heads=2), small_strategy("tensor"), "model=4")


def test_a_batch_that_does_not_divide_is_refused():
    """The batch is a dim like any other."""
    with pytest.raises(LayoutError, match="'batch' has size 12 but mesh axis 'data' has 8"):
        laid(small_model("mlp").with_batch_size(12), small_strategy("data"), "data=8")


def test_a_weight_with_no_dim_to_shard_is_refused_not_replicated():
    """No silent rescue: an array above the threshold that nothing divides is an error."""
    model = small_model("mlp", width=31, classes=7, pixels=49)
    with pytest.raises(LayoutError, match="2 does not divide 31"):
        laid(model, replace(load_strategy("fsdp"), whole_below=8), "data=2")


def test_two_roles_on_one_axis_and_one_array_are_refused():
    """An axis can split one dim of an array: array, axis and both dims are named."""
    both = Strategy(name="both", compute={"inner": "model", "residual": "model"})
    with pytest.raises(LayoutError, match="'model' is asked to split both dim .* and dim"):
        laid(small_model("mlp"), both, "model=2")
    assert laid(small_model("mlp"), both, "data=2").parameters


def test_activations_are_sharded_by_their_dims_names():
    """What a step constrains between layers: batch over data, inner width over model."""
    layout = laid(small_model("transformer"), small_strategy("hybrid"), "data=4,model=2")
    assert layout.place_of(("batch", "sequence", "embed")) == P("data", None, None)
    assert layout.place_of(("batch", "sequence", "ffn")) == P("data", None, "model")


def test_statistics_are_sharded_like_the_parameters_beside_them():
    """BatchNorm's mean has no names of its own, and is sharded as its scale is."""
    layout = laid(small_model("convnet"), small_strategy("tensor"), "model=2")
    for index in range(2):
        scale = layout.parameters[f"norms/{index}/scale"]
        for statistic in ("mean", "var"):
            array = layout.state[f"norms/{index}/{statistic}"]
            assert (array.dims, array.stored) == (scale.dims, scale.stored)
    assert layout.parameters["norms/0/scale"].stored == P("model")


def test_a_layout_changes_nothing_of_what_it_was_made_from():
    """Frozen values: laying out twice gives the same specs, and records cannot be written to."""
    model, strategy = small_model("mlp"), small_strategy("hybrid")
    first, second = (laid(model, strategy, "data=4,model=2") for _ in range(2))
    assert first.parameters == second.parameters and first.batch == second.batch
    with pytest.raises(TypeError):
        cast(Any, first.parameters)["new"] = None
    with pytest.raises(AttributeError):
        cast(Any, first).mesh = None


def test_combining_joins_the_tables():
    """hybrid is data and tensor, and keeps the collectives that both state."""
    data, tensor = load_strategy("data"), load_strategy("tensor")
    both = combine(data, tensor)
    assert both.compute == {**data.compute, **tensor.compute}
    assert both.must == {**data.must, **tensor.must}
    assert both.never["data"] == data.never["data"]
    assert both.never["model"] == tensor.never["model"]
    hybrid = STRATEGIES.load("hybrid")()
    assert replace(both, name="hybrid") == hybrid == load_strategy("hybrid")
    assert combine(tensor, data).compute == both.compute


def test_combining_refuses_one_role_on_two_axes():
    """A dim of a weight has one place: both strategies, the role and both axes are named."""
    other = Strategy(name="rows", compute={"inner": "data"})
    with pytest.raises(
        LayoutError, match="'tensor' splits role 'inner' over axis 'model' and 'rows'"
    ):
        combine(load_strategy("tensor"), other)


def test_rows_may_be_split_over_several_axes():
    """Copies across nodes and shards inside them: the batch over both, outermost first."""
    both = load_strategy("fsdp+replica")
    assert both.compute["batch"] == ("replica", "data")
    layout = laid(small_model("mlp"), both, "replica=2,data=4")
    assert layout.batch["label"] == P(("replica", "data"))


@pytest.mark.parametrize(
    ("one", "other", "sentence"),
    [
        ("tensor", Strategy(name="rows", compute={"sequence": "model"}), "both want mesh axis"),
        (
            "fsdp",
            "zero1",
            "stores gradients, optimizer state and parameters sharded and 'zero1'",
        ),
        ("local_sgd", "pipeline", "'local_sgd' and 'pipeline' cannot be combined: replicas"),
        (
            "zero1",
            "zero2",
            "'zero1' stores optimizer state sharded and 'zero2' gradients and optimizer",
        ),
    ],
)
def test_combining_refuses_what_contradicts(one, other, sentence):
    """One axis for two things, or two answers to one question: both strategies and the reason."""
    other = load_strategy(other) if isinstance(other, str) else other
    with pytest.raises(LayoutError, match=sentence):
        combine(load_strategy(one), other)


def test_what_one_of_two_needs_the_other_cannot_forbid():
    """fsdp+data on one axis: data never gathers, fsdp must."""
    both = combine(load_strategy("data"), load_strategy("fsdp"))
    assert "all-gather of weights" in both.must["data"]
    assert not both.must["data"] & both.never["data"]
    assert {"all-to-all", "collective-permute"} <= both.never["data"]


def test_fields_of_a_model_are_changed_from_outside():
    """with_fields keeps the batch, refuses a name that is none, and leaves the original alone."""
    model = MODELS.load("mlp")().with_batch_size(12)
    wide = model.with_fields(width=512)
    assert (wide.config.width, model.config.width, wide.batch_size) == (512, 256, 12)
    with pytest.raises(RequestError, match="'widht': did you mean 'width'"):
        model.with_fields(widht=3)
