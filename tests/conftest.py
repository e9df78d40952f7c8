"""What every test runs under: sixteen fake CPU devices, decided before anything starts JAX.

JAX's strict dtype promotion is not on: optax's own bias correction multiplies a float by a count.
"""

import jax

from jaxpar.program import prefer_cpu

prefer_cpu()
jax.config.update("jax_num_cpu_devices", 16)
