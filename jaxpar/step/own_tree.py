"""Parameters as their author has them: Flax's nested tree, each weight whole in meaning.

A step keeps them by path, some in pieces. An optimizer is given this tree, so that labels, masks
and whatever looks at a path or at a matrix see the model and not its storage.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp

from jaxpar.jaxprs.piecewise import Pieces
from jaxpar.layout.record import Layout
from jaxpar.models.modules import Parts, values_of
from jaxpar.models.pieces import Cut, owners, pieces_of

Key = str | int


@dataclass(frozen=True)
class OwnTree:
    """How the parameters of a model lie in its own tree.

    Attributes:
        keys: path of a whole weight -> its keys in the tree, outermost first.
        shapes: path of a whole weight -> its shape.
        cuts: path of a whole weight that is stored in pieces -> how it is cut.
    """

    keys: Mapping[str, tuple[Key, ...]]
    shapes: Mapping[str, tuple[int, ...]]
    cuts: Mapping[str, Cut]

    @classmethod
    def of(cls, layout: Layout) -> OwnTree:
        """That of a layout's model."""
        cuts = {p: c for p, c in layout.model.cuts.items() if f"{p}/0" in layout.parameters}
        return cls.of_parts(layout.module, cuts)

    @classmethod
    def of_parts(cls, parts: Parts, cuts: Mapping[str, Cut] = MappingProxyType({})) -> OwnTree:
        """That of a module taken apart, which holds weights in pieces as `cuts` says."""
        owner, keys, shapes = owners(cuts), {}, {}
        for path, array in values_of(parts.parameters).items():
            flax, whole = parts.keys[path], owner.get(path, path)
            keys[whole] = plain_keys(flax[:-1] if path in owner else flax)
            shapes[whole] = array.shape
            if path in owner:
                at = cuts[whole].dim
                shapes[whole] = (*array.shape[:at], sum(cuts[whole].sizes), *array.shape[at + 1 :])
        return cls(keys, shapes, cuts)

    def whole(self, stored: Mapping[str, Any]) -> dict[str, Any]:
        """Path of a weight -> its array, or `Pieces` of it, of arrays by path of storage."""
        return {
            path: Pieces(tuple(stored[p] for p in pieces_of(path, self.cuts)), self.cuts[path].dim)
            if path in self.cuts
            else stored[path]
            for path in self.keys
        }

    def stored(self, whole: Mapping[str, Any]) -> dict[str, Any]:
        """Arrays by path of storage, of arrays or `Pieces` by path of a weight.

        An array may have other dims in front, such as one of replicas.
        """
        flat = {}
        for path, value in whole.items():
            parts = (value,)
            if path in self.cuts:
                lead = 0 if isinstance(value, Pieces) else value.ndim - len(self.shapes[path])
                parts = self.apart(path, value, lead).parts
            flat |= dict(zip(pieces_of(path, self.cuts), parts, strict=True))
        return flat

    def apart(self, path: str, value: Any, lead: int = 0) -> Pieces:
        """A weight, or what has its shape behind `lead` other dims, in the weight's pieces."""
        cut = Cut(self.cuts[path].dim + lead, self.cuts[path].sizes)
        return value if isinstance(value, Pieces) else Pieces(cut.of(value), cut.dim)

    def nested(self, whole: Mapping[str, Any]) -> dict[Key, Any]:
        """Flax's tree of what is given for each weight's path."""
        tree: dict[Key, Any] = {}
        for path, keys in self.keys.items():
            node = tree
            for key in keys[:-1]:
                node = node.setdefault(key, {})
            node[keys[-1]] = whole[path]
        return tree

    def by_path(self, tree: Mapping[Key, Any]) -> dict[str, Any]:
        """What a tree like Flax's holds for each weight's path."""
        found = {}
        for path, keys in self.keys.items():
            node: Any = tree
            for key in keys:
                node = node[key]
            found[path] = node
        return found

    def path_at(self, keys: tuple[Any, ...]) -> str | None:
        """The weight whose keys these end with, JAX's keys of a leaf; None if they end with none.

        Optimizer state that mirrors the parameters holds their tree somewhere in its own.
        """
        plain = tuple(getattr(k, "key", getattr(k, "idx", getattr(k, "name", None))) for k in keys)
        ends = (path for path, own in self.keys.items() if plain[-len(own) :] == own)
        return max(ends, key=lambda path: len(self.keys[path]), default=None)


def plain_keys(keys: tuple[Any, ...]) -> tuple[Key, ...]:
    """Flax's keys as keys of dicts that JAX can sort: a pair becomes one text."""
    return tuple(k if isinstance(k, str | int) else "/".join(map(str, k)) for k in keys)


def abstract(tree: Any) -> Any:
    """A tree of arrays as a tree of jax.ShapeDtypeStruct, pieces as what they make together."""

    def shape(value):
        if not isinstance(value, Pieces):
            return jax.ShapeDtypeStruct(jnp.shape(value), jnp.result_type(value))
        lengths = list(value.parts[0].shape)
        lengths[value.dim] = sum(value.sizes)
        return jax.ShapeDtypeStruct(tuple(lengths), value.parts[0].dtype)

    return jax.tree.map(shape, tree, is_leaf=lambda x: isinstance(x, Pieces))
