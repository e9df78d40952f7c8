"""What is known of one class of dims, added up over all that a loss does with it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Account:
    """What is known of one class.

    Attributes:
        size: of the dim.
        weights: (path, dim) of every weight that has it.
        flops: of the contractions with a weight that has it, in one forward pass.
        summed_bytes: of the textbook's sums, forward and backward, if it were split.
        other_bytes: of all else that would have to be summed.
        made, spent: whether a weight makes it, and whether one contracts it away.
        looked_up, picked: whether ids index it in a weight, or in what a weight made.
        matched: whether ids are compared with all of it, which makes a one-hot.
        paired: whether two activations are multiplied for each of it, as attention heads are.
        pairings: in how many such products it is free.
        routed: whether tokens are spread over it: by a product of activations, or by scores that a
            weight makes of it alone.
        chosen_by: whether a weight has a matrix for each of it, and an activation has it too.
        stands: whether it is a dim of rows that weights are applied to one by one.
        windowed, convolved: whether a window slides along it; whether it is a filter's channels.
        placed: whether numbers other than ids of the batch choose a place along it.
        carried: whether a lookup makes it.
        companion: role of the split class that activations never have it without, or "".
        obstacle: why it cannot be split, or None.
    """

    size: int
    weights: list[tuple[str, int]] = field(default_factory=list)
    flops: int = 0
    summed_bytes: int = 0
    other_bytes: int = 0
    made: bool = False
    spent: bool = False
    looked_up: bool = False
    picked: bool = False
    matched: bool = False
    paired: bool = False
    pairings: int = 0
    routed: bool = False
    chosen_by: bool = False
    stands: bool = False
    windowed: bool = False
    convolved: bool = False
    placed: bool = False
    carried: bool = False
    companion: str = ""
    obstacle: tuple[str, Any] | None = None

    @property
    def is_choice(self) -> bool:
        """Whether each token may choose among its matrices, as among experts."""
        one_of_many = self.chosen_by and self.routed and bool(self.weights)
        return one_of_many and not self.paired and not (self.made and self.spent)

    @property
    def is_used_up(self) -> bool:
        """Whether it is made by a weight, or out of ids, and contracted away or picked from."""
        made, gone = self.made, self.spent or self.picked or self.matched
        return (made and gone) or (self.matched and self.spent)

    @property
    def bargain(self) -> float:
        """Multiply-adds divided, for every byte that has to be summed."""
        return self.flops / max(1, self.summed_bytes + self.other_bytes)
