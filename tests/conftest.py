"""What every test runs under: eight fake CPU devices, and JAX at its strictest."""

import jax

from jaxpar.program import prefer_cpu

prefer_cpu()
jax.config.update("jax_num_cpu_devices", 16)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
