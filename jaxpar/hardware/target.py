"""XLA's description of a GPU, which is all that it needs to compile for one that is not here.

The figures are those of XLA's own descriptions (xla/backends/gpu/target_config/specs), or of the
vendor's documents where it has none.
"""

from dataclasses import dataclass

_TEXT = """
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: {one.shared_bytes}
  threads_per_core_limit: {one.threads}
  core_count: {one.multiprocessors}
  fpus_per_core: {one.lanes}
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: {one.memory_bytes_per_second}
  l2_cache_size: {one.cache_bytes}
  clock_rate_ghz: {one.clock_ghz}
  device_memory_size: {one.memory_bytes}
  shared_memory_per_block_optin: {one.block_bytes}
  cuda_compute_capability {{ major: {one.capability[0]} minor: {one.capability[1]} }}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 8 }}
runtime_version {{ major: 12 minor: 8 }}
device_description_str: "{one.name}"
"""


@dataclass(frozen=True)
class Target:
    """One GPU, as XLA wants it described.

    Attributes:
        name: as its driver calls it.
        capability: (major, minor) of CUDA.
        multiprocessors, lanes: streaming multiprocessors, and lanes of float32 in each.
        clock_ghz: the highest.
        memory_bytes, memory_bytes_per_second, cache_bytes: of its memory and its L2 cache.
        shared_bytes, block_bytes: shared memory of a multiprocessor, and what a block can have.
        threads: that a multiprocessor keeps.
    """

    name: str
    capability: tuple[int, int]
    multiprocessors: int
    lanes: int
    clock_ghz: float
    memory_bytes: int
    memory_bytes_per_second: int
    cache_bytes: int
    shared_bytes: int
    block_bytes: int
    threads: int = 2048

    @property
    def text(self) -> str:
        """The text form of XLA's message `GpuTargetConfigProto`."""
        return _TEXT.format(one=self)
