"""Everything replicated on every device: the reference that all other strategies are held to.

Shards nothing and has no collectives. On more than one device each does the same work.
"""

from jaxpar.core.mesh import AXES
from jaxpar.strategies.record import KINDS, Strategy


def strategy() -> Strategy:
    """Return the strategy that shards nothing."""
    return Strategy(name="single", never={axis: KINDS for axis in AXES})
