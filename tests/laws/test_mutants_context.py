"""Exchanges broken on purpose: verify catches each, in the first gradient that it compares."""

from dataclasses import replace

import pytest
from small import cpu
from test_context import laid_out

from jaxpar.attention import ring, ulysses
from jaxpar.measures.verify.verify import verify

pytestmark = pytest.mark.usefixtures("drawn_once")

RIGHT = ring.Ring.tiles


def without_the_last_hop(self, hop, rows):
    """Nobody sees the keys that have come farthest."""
    if not isinstance(hop, int) or hop < self.ways - 1:
        yield from RIGHT(self, hop, rows)


def with_the_mask_of_another(self, hop, rows):
    """What is seen is what the next device may see."""
    own = isinstance(hop, int) and hop == 0
    yield from RIGHT(self, 0 if own else hop + 1, rows)


@pytest.mark.parametrize("wrong", [without_the_last_hop, with_the_mask_of_another])
def test_a_wrong_ring_is_caught(monkeypatch, wrong):
    """Both directions are wrong alike, so that the gradient is that of the wrong loss."""
    monkeypatch.setattr(ring.Ring, "tiles", wrong)
    assert_caught(laid_out("ring", "model=4"))


def test_heads_that_come_back_to_others_places_are_caught(monkeypatch):
    """Ulysses with the key-value heads of its result turned round."""
    right = ulysses.exchange

    def swapped(split):
        made = right(split)

        def local(*operands, **how):
            return made.local(*operands, **how)[:, :, ::-1]

        return replace(made, local=local)

    monkeypatch.setattr(ulysses, "exchange", swapped)
    assert_caught(laid_out("ulysses", "model=4"))


def assert_caught(layout):
    verdict = verify(layout, hardware=cpu(), steps=1)
    assert not verdict.ok, "the mistake was not caught"
    assert verdict.decisive.name == "gradient"
    assert verdict.decisive.error > 1e-3
