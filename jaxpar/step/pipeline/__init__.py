"""Pipeline parallelism: a stack of layers in stages, run by the table of a schedule.

One shard_map program. Every device walks the table tick by tick, does what its stage has to do (a
forward pass, a backward pass, or nothing) and exchanges one activation or gradient with its
neighbour by a permute. Inside a stage the collectives of other axes are placed by `jaxpar.spmd`.
"""

from jaxpar.step.pipeline.gathered import Gathering
from jaxpar.step.pipeline.gradient import evaluate_in_stages, staged
from jaxpar.step.pipeline.parts import take_apart

__all__ = ["Gathering", "evaluate_in_stages", "staged", "take_apart"]
