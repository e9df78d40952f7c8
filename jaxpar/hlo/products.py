"""Products of a compiled program: of matrices and of fused attention, with their sizes.

Convolutions are not told apart by size: their FLOPs follow from the window, which the text has.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from jaxpar.hlo.parse import Computation, Instruction, Module, bytes_of
from jaxpar.hlo.touched import is_product

_DIMS = r'"?%s_%s_dim(?:ension)?s"?[=:][\[{]((?:"?\d+"?,?)*)[\]}]'
_WINDOW = re.compile(r"window=\{size=([\dx]+)")


@dataclass(frozen=True)
class Product:
    """One product of matrices: `batch` times (m, k) by (k, n).

    Attributes:
        dtype: of the operands, as XLA spells it.
        bytes: of operands and result.
    """

    dtype: str
    batch: int
    m: int
    n: int
    k: int
    bytes: int

    @property
    def flops(self) -> float:
        """Multiply-adds times two."""
        return 2.0 * self.batch * self.m * self.n * self.k


@dataclass(frozen=True)
class FusedAttention:
    """One call of fused attention.

    Attributes:
        dtype: of the operands, as XLA spells it.
        rows, heads, queries, keys, head: how many sequences, heads and positions; a head's size.
        causal: whether half of the scores is left out.
        backward: whether it computes gradients.
        bytes: of operands and results.
    """

    dtype: str
    rows: int
    heads: int
    queries: int
    keys: int
    head: int
    causal: bool
    backward: bool
    bytes: int

    @property
    def flops(self) -> float:
        """Two products forward and five backward; half of them where the mask is causal."""
        products = 5 if self.backward else 2
        scores = self.rows * self.heads * self.queries * self.keys * (0.5 if self.causal else 1.0)
        return 2.0 * products * scores * self.head


Counted = Mapping["Product | FusedAttention", int]
"""Products, and how often each is there."""


def products_of(
    module: Module, computation: Computation, i: Instruction, known: dict[str, Counted]
) -> Counted:
    """Every product that an instruction computes: itself, or those inside of a fusion.

    Args:
        module, computation, i: where it is.
        known: the name of a fusion's inside -> what was found there so far, which grows.

    Raises:
        ValueError: for a product that its operands cannot make.
    """
    if not is_product(module, i):
        return {}
    if i.calls:
        name = i.calls[0][1]
        if name not in known:
            body = module.computations[name]
            found: Counter[Product | FusedAttention] = Counter()
            for inner in body.instructions:
                for one, times in products_of(module, body, inner, known).items():
                    found[one] += times
            known[name] = found
        return known[name]
    try:
        return {_product(computation, i): 1}
    except (IndexError, ValueError):  # too few operands, or of too few dims
        raise ValueError(f"{i.name}: no product can be made of its operands") from None


def _product(computation: Computation, i: Instruction) -> Product | FusedAttention:
    """What one instruction computes."""
    operands = [computation.by_name[name] for name in i.operands]
    touched = sum(bytes_of(s) for one in (*operands, i) for s in one.shapes if s[0] != "s8")
    if "fmha" in i.attributes:
        return _attention(i, operands, touched)
    return _matrices(i, operands, touched)


def _attention(i: Instruction, operands: list[Instruction], touched: int) -> FusedAttention:
    """Fused attention; queries are (rows, positions, heads, size of a head), and so are keys."""
    dtype, (rows, queries, heads, head) = operands[0].shapes[0]
    return FusedAttention(
        dtype, rows, heads, queries, operands[1].shapes[0][1][1], head,
        causal="CAUSAL" in i.attributes, backward="Backward" in i.attributes, bytes=touched,
    )  # fmt: skip


def _matrices(i: Instruction, operands: list[Instruction], touched: int) -> Product:
    """A product of matrices, or a convolution as one: its taps are contracted."""
    dtype, left = operands[0].shapes[0]
    right = operands[1].shapes[0][1] if len(operands) > 1 else ()
    result = i.shapes[0][1]
    if i.opcode == "convolution" or "conv" in i.attributes.partition("metadata=")[0]:
        taps = _WINDOW.search(i.attributes)
        window = prod(map(int, taps[1].split("x"))) if taps else 1
        features = max(1, prod(right) // max(1, window * max(result, default=1)))
        outputs = max(1, prod(right) // (window * features))
        return Product(dtype, 1, prod(result) // outputs, outputs, window * features, touched)
    contracted, batch = _dims(i, "lhs", "contracting"), _dims(i, "lhs", "batch")
    k, b = (prod(left[d] for d in dims) for dims in (contracted, batch))
    m = prod(left) // max(1, k * b)
    n = prod(right) // max(1, k * b)
    return Product(dtype, b, m, n, k, touched)


def _dims(i: Instruction, side: str, kind: str) -> list[int]:
    """The dims of an operand that are contracted, or are batch dims."""
    found = re.search(_DIMS % (side, kind), i.attributes)
    return [int(n) for n in re.findall(r"\d+", found[1])] if found else []
