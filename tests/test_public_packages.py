"""Models from packages that never heard of jaxpar, as they are."""

from functools import cache

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxpar
from jaxpar.case import load_strategy

pytestmark = pytest.mark.usefixtures("ranks_promoted", "drawn_once")

CPU = jaxpar.HARDWARE.load("cpu")()


@cache
def resnet():
    """The ResNet-18 of flaxmodels, on small images."""
    flaxmodels = pytest.importorskip("flaxmodels")

    def loss(model, batch):
        logits = model(batch["image"], train=True)
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()

    module = flaxmodels.ResNet18(output="logits", pretrained=None, num_classes=10, normalize=False)
    rng = np.random.default_rng(0)
    return jaxpar.model(
        module,
        loss,
        {
            "image": rng.uniform(size=(4, 16, 16, 3)).astype("float32"),
            "label": rng.integers(0, 10, 4).astype("int32"),
        },
    )


def molecule():
    """An equivariant network of e3x's layers: messages between atoms by spherical harmonics."""
    e3x = pytest.importorskip("e3x")
    import flax.linen as nn

    ends, starts = e3x.ops.sparse_pairwise_indices(4)

    class Energy(nn.Module):
        @nn.compact
        def __call__(self, numbers, positions):
            def one(numbers, positions):
                basis = e3x.nn.basis(
                    positions[starts] - positions[ends],
                    max_degree=1,
                    num=8,
                    radial_fn=e3x.nn.reciprocal_bernstein,
                    cutoff_fn=lambda r: e3x.nn.smooth_cutoff(r, 5.0),
                )
                x = e3x.nn.Embed(num_embeddings=10, features=8)(numbers)
                y = e3x.nn.MessagePass()(x, basis, dst_idx=ends, src_idx=starts)
                x = e3x.nn.add(x, y)
                x = e3x.nn.silu(e3x.nn.Dense(16)(x))
                x = e3x.nn.Dense(8)(x)
                return nn.Dense(1, use_bias=False)(x[:, 0, 0, :]).sum()

            return nn.vmap(
                lambda _, n, p: one(n, p),
                variable_axes={"params": None},
                split_rngs={"params": False},
            )(self, numbers, positions)

    def loss(model, batch):
        return jnp.mean((model(batch["numbers"], batch["positions"]) - batch["energy"]) ** 2)

    rng = np.random.default_rng(0)
    return jaxpar.model(
        Energy,
        loss,
        {
            "numbers": rng.integers(1, 10, (8, 4)).astype("int32"),
            "positions": rng.standard_normal((8, 4, 3)).astype("float32"),
            "energy": rng.standard_normal(8).astype("float32"),
        },
    )


@pytest.mark.parametrize(
    ("make", "strategy", "mesh"),
    [
        pytest.param(resnet, "fsdp+tensor", "data=2,model=2", marks=pytest.mark.claims),
        (molecule, "data", "data=4"),
    ],
)
def test_a_public_model_is_verified_as_it_is(make, strategy, mesh):
    """In float64; `molecule` makes arrays of a dtype of its own, which float64 must not upset."""
    layout = jaxpar.lay_out(
        make(), strategy=load_strategy(strategy), mesh=jaxpar.MeshShape.parse(mesh)
    )
    verdict = jaxpar.verify(layout, hardware=CPU, steps=1)
    assert verdict.ok, verdict.decisive
    assert verdict.dtype == "float64"


def test_a_public_model_has_inner_channels_that_tensor_parallelism_splits():
    """Found by use alone: a block's first convolution makes them, its second contracts them."""
    model = resnet()
    inner = [d for d in model.named if d.role == "inner"]
    assert len(inner) >= 6, [d.name for d in model.named]
    blocks = {place.split("/")[0] for d in inner for place in d.places}
    assert len(blocks - {"Dense_0"}) >= 6
