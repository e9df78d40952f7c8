"""NVIDIA H100 SXM 80 GB, described to XLA: as many as a mesh needs, eight a node, none present."""

from jaxpar.hardware.record import Hardware, Rates

_DEVICE = """
gpu_device_info {
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: 233472
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  device_memory_size: 84942979072
  shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 minor: 0 }
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 8 }
runtime_version { major: 12 minor: 8 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""

_RATES = Rates(
    # Products of float32 run as TF32, which is what XLA does with them unless it is told otherwise.
    flops_per_second={
        "float64": 66.9e12,
        "float32": 494.7e12,
        "bfloat16": 989.4e12,
        "float16": 989.4e12,
        "float8_e4m3fn": 1978.9e12,
        "float8_e5m2": 1978.9e12,
        "int8": 1978.9e12,
    },
    link_bytes_per_second=450e9,
    network_bytes_per_second=50e9,
    memory_bytes_per_second=3.35e12,
    source="NVIDIA H100 Tensor Core GPU Architecture (2022), table of SXM5: tensor cores without "
    "sparsity, NVLink 900 GB/s both ways; NVIDIA DGX H100 datasheet: eight 400 Gb/s adapters",
)


def hardware() -> Hardware:
    """Return described H100s."""
    return Hardware(
        name="h100",
        kind="described",
        devices_per_node=8,
        memory_bytes=84_942_979_072,
        target=_DEVICE,
        # The scheduler that real training runs use; and matrix products as cuBLAS calls, because
        # the tiles of Triton's would be picked by timing on a device that is not there. Copies are
        # left out where live ranges allow it: it hides as much communication as without, and
        # spares 13 GB of memory traffic a step of Llama 2 7B, 65 of 70B (`bench gpu_program`).
        compiler_options={
            "xla_gpu_copy_insertion_use_region_analysis": True,
            "xla_gpu_enable_latency_hiding_scheduler": True,
            "xla_gpu_enable_triton_gemm": False,
        },
        source="XLA's own description of an H100 SXM; NVIDIA H100 datasheet",
        rates=_RATES,
    )
