"""How a scan's operands fall into constants, what is carried, and what is scanned."""

from __future__ import annotations


def scan_parts(params) -> tuple[int, int]:
    """Where a scan's operands change from constants to carry, and from carry to slices."""
    if "num_carry" in params:
        return params["num_consts"], params["num_consts"] + params["num_carry"]
    consts, carry, _ = params["ft_in"].unpack()  # JAX 0.12 says it as a tree
    return len(consts), len(consts) + len(carry)
