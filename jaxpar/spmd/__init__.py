"""Manual mode: a function written for whole arrays, run on shards, every collective placed here.

`trace` reads the function at its global shapes and returns a `Plan`; inside `jax.shard_map` (with
its type check on, the default) the plan takes local shards and returns local results. Differentiate
the plan itself there: the gradient of each shard is complete, and must not be summed again.

What it gives: the numbers of the function on one device (random ones too), and a list of the
collectives it places, each with its reason. What it refuses (`ManualError`): specs that do not fit.
A primitive without a rule is done on replicated arrays, and the gathers are listed.
"""

from jaxpar.spmd.plan import Plan, trace
from jaxpar.spmd.run import Collective, ManualError

__all__ = ["Collective", "ManualError", "Plan", "trace"]
