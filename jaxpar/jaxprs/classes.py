"""Classes of dims: union-find in which a class may turn out to be the product of finer ones.

A reshape from (batch, 64) to (batch, 8, 8) shows that the dim of 64 is eight times eight; from then
on it is written as these two factors wherever it appears.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

Node = int
Dim = tuple[Node, ...]
"""One dim as the classes that it is the product of, major to minor; of size 1, none."""


class Classes:
    """Nodes with sizes, joined where they were found to be the same dim."""

    def __init__(self):
        """Start with no node."""
        self._parent: list[Node] = []
        self._sizes: list[int] = []
        self._parts: dict[Node, Dim] = {}

    def new(self, size: int) -> Node:
        """Make a node of this size, related to nothing."""
        self._parent.append(len(self._parent))
        self._sizes.append(int(size))
        return len(self._parent) - 1

    def dim(self, size: int) -> Dim:
        """Make a dim of this size, related to nothing."""
        return () if size == 1 else (self.new(size),)

    def dims(self, shape: Sequence[int]) -> list[Dim]:
        """Make one such dim for each size of a shape."""
        return [self.dim(size) for size in shape]

    def size(self, node: Node) -> int:
        """Return the size of a node."""
        return self._sizes[node]

    def root(self, node: Node) -> Node:
        """Return the node that stands for all that `node` was joined with."""
        parent = self._parent
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    def resolve(self, dim: Iterable[Node]) -> Dim:
        """Write a dim as the finest classes known, each by its root."""
        found: list[Node] = []
        for node in dim:
            root = self.root(node)
            parts = self._parts.get(root)
            if parts is None:
                found.append(root)
            else:
                found += self.resolve(parts)
        return tuple(found)

    def unify(self, one: Iterable[Node], other: Iterable[Node]) -> bool:
        """Join two ways to write one dim, refining either; False where they have no common factors.

        >>> classes = Classes()
        >>> merged, heads, width = classes.new(64), classes.new(4), classes.new(16)
        >>> classes.unify([merged], [heads, width])
        True
        >>> classes.resolve([merged]) == (heads, width)
        True
        """
        left, right = list(self.resolve(one)), list(self.resolve(other))
        while left and right:
            a, b = self.root(left.pop(0)), self.root(right.pop(0))
            if a == b:
                continue
            large, small = self._sizes[a], self._sizes[b]
            if large == small:
                self._join(a, b)
                continue
            if large < small:
                a, b, left, right = b, a, right, left
                large, small = small, large
            if large % small:
                return False
            major, minor = self.new(small), self.new(large // small)
            self._parts[a] = (major, minor)
            self._join(major, b)
            # `a` may stand elsewhere in what is left, and is written anew from here on.
            left = list(self.resolve([minor, *left]))
            right = list(self.resolve(right))
        return not left and not right

    def _join(self, a: Node, b: Node) -> None:
        """Make two nodes one class."""
        # The older node stands for both, so that what a class is called by does not move.
        self._parent[max(a, b)] = min(a, b)
