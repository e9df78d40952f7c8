"""The parts a dim can play in a network: the only words that models and strategies share.

A model gives each of its dims a name and a role; a strategy says which roles go to which mesh axis.
Neither ever names the other. A model whose dims carry a role's own name need not say more.
"""

from jaxpar.core.errors import unknown

ROLES = {
    "batch": "independent examples; split by data parallelism",
    "sequence": "positions of one example, in order",
    "residual": "the width that runs through the whole network; every block reads and writes it",
    "inner": "a width made inside one block and contracted away before the block ends",
    "heads": "attention heads, made and contracted away inside one block like an inner width",
    "vocabulary": "the ids that an embedding reads and a head scores",
    "layers": "equal blocks, stacked",
    "experts": "alternative blocks, of which each token visits a few",
    "feature": "anything else, such as a head's own width, a filter's window or an input's pixels",
}
"""Role name -> what a dim in that role is."""

UNNAMED = "unnamed"
"""The name of a dim about which nothing is known; it is never split by role."""
ONE = "one"
"""The name of a dim of size 1, of which there is nothing to split."""


def check_role(role: str) -> str:
    """Return `role` if it is one, else refuse with the nearest that is."""
    if role not in ROLES:
        raise unknown("role", role, ROLES)
    return role
