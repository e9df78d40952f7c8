"""How long and how hard to train, and what surrounds it; the optimizer that is asked for."""

from dataclasses import asdict, dataclass, fields
from typing import Any

from jaxpar.core.errors import unknown
from jaxpar.core.kinds import MOST, whole
from jaxpar.layout.record import Layout
from jaxpar.models.pieces import pieces_of
from jaxpar.optimizers.record import Optimizer, Recipe, check_counts, make_optimizer
from jaxpar.step.loss_scale import check_scale
from jaxpar.step.own_tree import OwnTree

ON_NAN = ("stop", "skip", "restore")


@dataclass(frozen=True)
class Training(Recipe):
    """How long and how hard to train: a recipe for the optimizer, and what surrounds it.

    Attributes:
        microbatches: parts whose gradients are accumulated into one update.
        loss_scale: a power of two for compute in float16, 0 for none. An update that is not finite
            is then skipped and counted, and the twenty-first in a row is not skipped, so that a
            scale which always overflows shows in the loss.
        seed: of the parameters, the batches and dropout.
        evaluate_every: steps between looks at the test split; 0 looks only at the end.
        save_every: steps between checkpoints, where they are kept; 0 saves only at the end.
        keep: how many of the newest checkpoints are kept, beside the one with the least test loss.
        on_nan: what becomes of a loss that is no finite number: stop, or skip each update that is
            not finite, or restore the last checkpoint and leave out the batches since.
    """

    microbatches: int = 1
    loss_scale: float = 0.0
    seed: int = 0
    evaluate_every: int = 0
    save_every: int = 500
    keep: int = 3
    on_nan: str = "stop"

    def __post_init__(self):
        super().__post_init__()
        check_counts(self, microbatches=1, evaluate_every=0, save_every=0, keep=1)
        whole("seed", self.seed, most=MOST)
        check_scale(self.loss_scale)
        if self.on_nan not in ON_NAN:
            raise unknown("on_nan", self.on_nan, ON_NAN)


def optimizer_of(training: Training, layout: Layout, **options: Any) -> Optimizer:
    """The optimizer that `training` asks for, for the parameters of a layout.

    `options` are the rule's own, such as AdamW's `b2`. With a loss scale, or
    where `on_nan` asks for it, an update that is not finite is skipped.
    """
    own = OwnTree.of(layout)
    dims = {path: layout.parameters[pieces_of(path, own.cuts)[0]].dims for path in own.keys}
    skips = bool(training.loss_scale) or training.on_nan == "skip"
    return make_optimizer(training, own.nested(dims), skips=skips, **options)


def set_fields(record: Any, changes: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Replace the fields of a record that `changes` names; returns it and what was left over."""
    own = {f.name for f in fields(record)}
    taken = {name: value for name, value in changes.items() if name in own}
    rest = {name: value for name, value in changes.items() if name not in own}
    return type(record)(**{**asdict(record), **taken}), rest
