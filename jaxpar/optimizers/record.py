"""The Recipe record: how far and how fast parameters are moved, and what all optimizers share.

An entry of this catalogue makes the rule alone. Warm-up, decay, which arrays decay, clipping and
skipping are the same for every rule, and are here.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import jax
import optax

from jaxpar.core.catalogue import OPTIMIZERS
from jaxpar.core.errors import RequestError, unknown
from jaxpar.core.kinds import check_kinds, whole

DECAYS = ("cosine", "constant", "linear")
SKIPS_IN_A_ROW = 20
"""Updates that are not finite, one after another, before one is taken all the same."""

Dims = Mapping[Any, Any]
"""The parameters' own tree, with the names of its dims, a tuple, in place of each parameter."""

Optimizer = optax.GradientTransformation
"""What every entry returns: `init` and `update`, pure functions of trees of arrays."""


@dataclass(frozen=True)
class Recipe:
    """How parameters are moved, whatever the rule.

    Attributes:
        steps: updates in all, which the decay is spread over.
        learning_rate: the peak, reached after `warmup` steps.
        decay: cosine or linear decay to a tenth of the peak, or constant.
        warmup: steps of linear warm-up; None means a twentieth of `steps`.
        weight_decay: decoupled weight decay, on matrices only.
        clip: largest norm of the whole gradient; 0 leaves it alone.
        optimizer: catalogue name of the rule.
    """

    steps: int = 200
    learning_rate: float = 2e-3
    decay: str = "cosine"
    warmup: int | None = None
    weight_decay: float = 0.01
    clip: float = 1.0
    optimizer: str = "adamw"

    def __post_init__(self):
        check_kinds(self)
        check_counts(self, steps=1, warmup=0)
        whole("steps", self.steps, least=1)
        whole("warmup", self.warmup or 0)
        for name in ("learning_rate", "weight_decay", "clip"):
            if not 0 <= getattr(self, name) < math.inf:
                raise RequestError(f"{name}={getattr(self, name)}: use a number from 0 up")
        if self.decay not in DECAYS:
            raise unknown("decay", self.decay, DECAYS)
        if self.optimizer not in OPTIMIZERS.names():
            raise unknown("optimizer", self.optimizer, OPTIMIZERS.names())

    def rate(self) -> optax.Schedule:
        """The learning rate by update: a linear rise to the peak, then the decay."""
        peak, steps = self.learning_rate, self.steps
        warmup = steps // 20 if self.warmup is None else self.warmup
        after = {
            "cosine": lambda: optax.cosine_decay_schedule(peak, max(1, steps - warmup), alpha=0.1),
            "linear": lambda: optax.linear_schedule(peak, peak / 10, max(1, steps - warmup)),
            "constant": lambda: optax.constant_schedule(peak),
        }[self.decay]()
        if not warmup:
            return after
        rise = optax.linear_schedule(peak / warmup, peak, max(1, warmup - 1))
        return optax.join_schedules([rise, after], [warmup])


def make_optimizer(
    recipe: Recipe, dims: Dims, *, skips: bool = False, **options: float | bool
) -> Optimizer:
    """The rule that a recipe names, with its clipping; the same object for equal arguments.

    So one device's side of a comparison is made once for all layouts of a model.

    Args:
        recipe: what is asked for.
        dims: of every parameter.
        skips: whether an update that is not finite is left out and counted; the twenty-first in a
            row is taken, so that a loss scale which always overflows shows in the loss.
        options: the rule's own, such as AdamW's `b2`.
    """
    leaves, tree = jax.tree.flatten(dims, is_leaf=lambda node: isinstance(node, tuple))
    return _made(recipe, tree, tuple(leaves), skips, tuple(sorted(options.items())))


@lru_cache(maxsize=64)
def _made(recipe: Recipe, tree: Any, leaves: tuple, skips: bool, options: tuple) -> Optimizer:
    """What `make_optimizer` gives of a tree of dims taken apart."""
    dims = jax.tree.unflatten(tree, leaves)
    optimizer = OPTIMIZERS.load(recipe.optimizer)(recipe, dims, **dict(options))
    if recipe.clip:
        optimizer = optax.chain(optax.clip_by_global_norm(recipe.clip), optimizer)
    return optax.apply_if_finite(optimizer, SKIPS_IN_A_ROW) if skips else optimizer


def decayed_and_scaled(rule: Optimizer, recipe: Recipe, dims: Dims) -> Optimizer:
    """A rule for a learning rate of 1, with weight decay of matrices, times the recipe's rate.

    Args:
        rule: whose update is what is added to a parameter.
        recipe: rate and weight decay.
        dims: of every parameter.
    """
    return optax.chain(
        rule,
        optax.add_decayed_weights(-recipe.weight_decay, matrices(dims)),
        optax.scale_by_schedule(recipe.rate()),
    )


def matrices(dims: Dims) -> Any:
    """Which parameters decay: those with two dims and more in one layer. A tree as `dims` is.

    >>> matrices({"up": ("layers", "embed", "ffn"), "bias": ("layers", "ffn")})
    {'bias': False, 'up': True}
    """
    return jax.tree.map(
        lambda own: sum(dim != "layers" for dim in own) > 1,
        dims,
        is_leaf=lambda node: isinstance(node, tuple),
    )


def check_counts(record: object, **least: int) -> None:
    """Refuse a count of `record` that is below the least it can be; None is no count."""
    for name, bound in least.items():
        value = getattr(record, name)
        if value is not None and value < bound:
            raise RequestError(f"{name}={value}: use {bound} or more")


def check_fraction(**options: float) -> None:
    """Refuse an option of a rule that is not from 0 up to, not including, 1."""
    for name, value in options.items():
        if not 0 <= value < 1:
            raise RequestError(f"{name}={value}: use a number from 0 up to, not including, 1")
