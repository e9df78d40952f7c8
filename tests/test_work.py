"""Work: FLOPs as counted by hand from shapes, and by XLA; recomputation apart."""

import jax
import pytest
from small import small_layout

import jaxpar
from jaxpar.core.catalogue import MODELS
from jaxpar.measures.work import products, work
from jaxpar.step.make_step import make_step


def counted(layout, **how):
    return work(make_step(layout, **how))


def total(flops):
    return sum(flops.values())


def by_hand(config, rows: int) -> tuple[int, int, int]:
    """FLOPs of a decoder's forward pass: in its layers, in their last product, in its head.

    Two for each weight and token (Kaplan et al. 2020), and in attention two for each pair of
    positions, head and width, for the scores and again for the values.
    """
    c, tokens = config, rows * config.sequence
    inner = c.heads * (c.width // c.heads)
    layer = c.width * 3 * inner + inner * c.width + 2 * c.width * c.ffn
    scores = 4 * tokens * c.sequence * inner
    last = 2 * tokens * c.ffn * c.width
    layers = c.layers * (2 * tokens * layer + scores)
    return layers, c.layers * last, 2 * tokens * c.width * c.vocabulary


@pytest.mark.parametrize("remat", ["none", "full", "dots"])
@pytest.mark.parametrize(
    ("strategy", "mesh", "how"),
    [
        ("data", "data=4", {}),
        ("fsdp", "data=4", {"microbatches": 2}),
        ("pipeline", "pipe=2", {"microbatches": 4}),
        ("local_sgd", "replica=4", {}),
    ],
)
def test_a_decoders_work_is_that_of_the_textbook(strategy, mesh, how, remat):
    """Forward once and backward twice, under every strategy; full remat adds layers forward.

    The last product of a layer is nothing that backward needs.
    """
    layout = small_layout("transformer", strategy, mesh, remat=remat)
    layers, last, head = by_hand(layout.model.config, layout.model.batch_size)
    found = counted(layout, **how)
    assert total(found.flops) == 3 * (layers + head)
    assert total(found.recomputed_flops) == (layers - last if remat == "full" else 0)
    assert found.sharing == layout.mesh.devices and found.is_exact
    assert found.device_flops == total(found.flops) / layout.mesh.devices
    assert (found.rows, found.tokens) == (16, 16 * layout.model.config.sequence)


@pytest.mark.parametrize(("remat", "again"), [("none", 0), ("full", 1), ("attended", 0)])
def test_fused_attention_computes_half_of_what_a_causal_mask_leaves(remat, again):
    """Seven products of half the scores where six of all of them are the loss's own.

    Forward is made again with its layer, unless its result is kept.
    """
    fields = {"remat": remat, "compute_dtype": "bfloat16", "width": 64}
    layout = small_layout("transformer", "data", "data=4", **fields)
    whole = small_layout("transformer", "data", "data=4", attention="whole", **fields)
    config, rows = layout.model.config, layout.model.batch_size
    one = 2 * rows * config.sequence**2 * config.width * config.layers
    found, other = counted(layout), counted(whole)
    assert total(found.flops) == total(other.flops) == total(other.computed_flops)
    assert total(found.computed_flops) == total(found.flops) - 6 * one + 7 * one // 2
    projections = total(other.recomputed_flops) - (2 * one if remat != "none" else 0)
    assert total(found.recomputed_flops) == projections + again * one


def test_devices_that_do_the_same_do_not_share_the_work():
    """Tensor parallelism does all rows at every place along data."""
    layout = small_layout("transformer", "tensor", "data=4,model=2")
    assert counted(layout).sharing == 2


@pytest.mark.parametrize("model", ["mlp", "convnet"])
def test_xla_counts_as_many(model):
    """Of the gradient compiled on one device, whose other operations are a few in a hundred.

    The first layer's input needs no gradient. XLA leaves out what a window has beyond an image.
    """
    fields = {"width": 256} if model == "mlp" else {"side": 24, "channels": 32}
    layout = small_layout(model, "single", "data=1", batch=64, **fields)
    step = make_step(layout)
    compiled = jax.jit(step.gradients).lower(step.state, step.batch).compile()
    by_xla = compiled.cost_analysis() or {}
    ours = total(work(step).flops)
    assert ours == pytest.approx(by_xla["flops"], rel=0.05 if model == "mlp" else 0.1)


def test_llama_3_does_six_flops_for_each_weight_and_token_and_those_of_attention():
    """8B at 8,192 tokens: a fifth above 6 N T; its own remat adds most of a forward pass, in which
    fused attention computes half the scores."""
    model = MODELS.load("llama3_8b")()
    layout = jaxpar.lay_out(
        model,
        strategy=jaxpar.STRATEGIES.load("fsdp")(),
        mesh=jaxpar.MeshShape(data=model.batch_size),
    )
    found = counted(layout)
    weights = sum(a.size for a in layout.parameters.values())
    assert 1.15 < total(found.flops) / (6 * weights * found.tokens) < 1.25
    assert 0.6 < total(found.recomputed_flops) / (total(found.flops) / 3) < 1
    assert found.flops["bfloat16"] > 0.95 * total(found.flops)


def test_a_loop_that_ends_by_a_condition_counts_once_and_is_said():
    """A loop over a known count is counted so often; one without products is no matter."""
    x = jax.ShapeDtypeStruct((4, 4), "float32")

    def scanned(x):
        return jax.lax.fori_loop(0, 5, lambda _, y: y @ x, x)

    def until(x):
        return jax.lax.while_loop(lambda y: y.sum() > 9, lambda y: y @ x, x)

    def until_without(x):
        return jax.lax.while_loop(lambda y: y.sum() > 9, lambda y: y / 2, x) @ x

    once = 2 * 4 * 4 * 4
    assert products(jax.make_jaxpr(scanned)(x)) == ({"float32": 5 * once}, True)
    assert products(jax.make_jaxpr(until)(x)) == ({"float32": once}, False)
    assert products(jax.make_jaxpr(until_without)(x)) == ({"float32": once}, True)


def test_of_a_conditional_the_branch_with_most_work_counts():
    """Not the sum of branches, of which one is taken."""
    x = jax.ShapeDtypeStruct((4, 4), "float32")

    def either(x):
        return jax.lax.cond(x.sum() > 0, lambda y: y @ x @ x, lambda y: y @ x, x)

    assert products(jax.make_jaxpr(either)(x)) == ({"float32": 2 * 2 * 4 * 4 * 4}, True)
