"""A sequence over devices: attention through an exchange is attention, and says what it states.

Numbers in float64 against one device; bytes on a described H100's program against formulas.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from small import cpu, small_layout, small_model
from test_traffic import FLOAT, HARDWARE, bytes_in, on_h100

from jaxpar.attention import blocks, zigzag
from jaxpar.case import load_strategy
from jaxpar.core.errors import LayoutError, RequestError
from jaxpar.core.mesh import MeshShape
from jaxpar.layout.lay_out import lay_out
from jaxpar.measures.inspect import inspect
from jaxpar.measures.verify.verify import verify
from jaxpar.program.record import compile_step
from jaxpar.step.make_step import make_step

pytestmark = pytest.mark.usefixtures("drawn_once")


def laid_out(exchange: str, mesh: str, *, beside: str = "", model=None, **fields):
    """The small decoder with its sequence over model, by one exchange."""
    strategy = load_strategy(f"{beside}context", exchange=exchange)
    model = model or small_model("transformer", **fields)
    return lay_out(model, strategy=strategy, mesh=MeshShape.parse(mesh))


def prove(layout):
    verdict = verify(layout, hardware=cpu())
    assert verdict.ok, f"{verdict.decisive}: {verdict.likely_mistake}"
    assert verdict.dtype == "float64"


def test_a_ring_computes_what_one_device_does():
    """Eight devices with chunks of a single position, grouped heads, everything recomputed."""
    prove(laid_out("ring", "model=8", kv_heads=2, remat="full"))


def test_a_ring_that_takes_its_keys_in_blocks_computes_the_same(monkeypatch):
    """With data beside it, learned positions and products kept, two keys at a time."""
    monkeypatch.setattr(blocks, "KEYS", 2)
    fields = {"sequence": 32, "positions": "learned", "remat": "dots"}
    prove(laid_out("ring", "data=2,model=4", beside="data+", **fields))


def test_a_ring_in_plain_order_computes_the_same_and_is_noted():
    """A model with dropout does not let its rows be dealt out: the order stays, and is said."""
    layout = laid_out("ring", "model=4", dropout=0.1, tied=True)
    assert any("does not ask where its rows stand" in note for note in layout.notes)
    prove(layout)


def test_ulysses_computes_what_one_device_does():
    """Two key-value heads on four devices: each repeated once, beside sharded weights."""
    prove(laid_out("ulysses", "data=2,model=4", beside="fsdp+", kv_heads=2))


@pytest.mark.parametrize("ways", [2, 4, 7])
def test_zigzag_gives_every_device_equal_work_in_every_hop(ways):
    """Counted pair by pair: with the keys of any other device, half of all pairs are seen."""
    chunk = 3
    at = np.asarray(zigzag.positions(ways, 2 * ways * chunk))
    assert sorted(at) == list(range(2 * ways * chunk))
    held = at.reshape(ways, -1)
    for i, queries in enumerate(held):
        for j, keys in enumerate(held):
            seen = int((queries[:, None] >= keys[None, :]).sum())
            assert i == j or seen == 2 * chunk * chunk


def traffic(layout, hardware):
    return inspect(
        compile_step(make_step(layout), hardware=HARDWARE.load(hardware)(), for_speed=False)
    )


SIZES: dict[str, Any] = {"sequence": 64, "kv_heads": 4, "unroll": 1, "layers": 3}
WAYS = 4


@pytest.mark.parametrize(("hardware", "remat", "trips"), [on_h100("none", 3), on_h100("full", 4)])
def test_a_ring_sends_keys_and_values_round_and_their_gradients_home(hardware, remat, trips):
    """Over model: 3 (n - 1) P a layer, or 4 where forward is made again; P keys and values.

    And three fields of a batch dealt out. XLA may share the first hop of forward and backward where
    it has both before it, as when a layer is computed again: up to P less a layer.
    """
    inspection = traffic(laid_out("ring", f"model={WAYS}", remat=remat, **SIZES), hardware)
    config, batch = inspection.layout.model.config, inspection.layout.model.batch_size
    positions = batch * config.sequence // WAYS * FLOAT
    passed = 2 * positions * config.key_value_heads * config.head_width
    expected = trips * (WAYS - 1) * passed * config.layers + 3 * positions
    shared = passed * config.layers if remat == "full" else 0
    sent = bytes_in(inspection, "collective-permute", "model")
    assert expected - shared <= sent * 1.02 and sent <= expected * 1.02
    assert bytes_in(inspection, "all-reduce") == inspection.layout.parameter_bytes + 4 * FLOAT
    assert inspection.ok


@pytest.mark.parametrize("hardware", [on_h100()])
def test_ulysses_sends_queries_keys_values_and_results_there_and_back(hardware):
    """Over model: 2 (2 Q + P) a layer, with Q the bytes of a device's queries."""
    inspection = traffic(laid_out("ulysses", f"model={WAYS}", **SIZES), hardware)
    config, batch = inspection.layout.model.config, inspection.layout.model.batch_size
    head = batch * config.sequence // WAYS * config.head_width * FLOAT
    expected = 2 * (2 * config.heads + 2 * config.key_value_heads) * head * config.layers
    assert bytes_in(inspection, "all-to-all", "model") == expected
    assert inspection.ok


def test_a_model_without_attention_is_refused():
    """There is nothing to put an exchange in the place of."""
    with pytest.raises(LayoutError, match="model 'mlp' has no attention.*strategy 'context'"):
        small_layout("mlp", "context", "model=4")


def test_lengths_and_heads_that_do_not_divide_are_refused():
    """A balanced ring needs two chunks a device; ulysses a share of heads."""
    with pytest.raises(LayoutError, match="24 positions into 16 equal pieces.*16 or 32"):
        laid_out("ring", "model=8", sequence=24)
    with pytest.raises(LayoutError, match="8 does not divide 12: .*exchange=ring"):
        laid_out("ulysses", "model=8", heads=12, kv_heads=12, head_dim=4)


def test_attention_that_an_exchange_does_not_know_is_refused():
    """A mask is found by tracing the loss, before anything is compiled."""
    plain = small_model("transformer")

    def masked(module, batch, *, key=None, attend, **chosen):
        def with_mask(q, k, v, *, causal, implementation):
            return attend(q, k, v, causal=causal, mask=batch["weight"])

        return plain.loss(module, batch, key=key, attend=with_mask, **chosen)

    with pytest.raises(RequestError, match="causal or sees everything, and is also given mask"):
        laid_out("ring", "model=4", model=replace(plain, loss=masked))
