"""What vendors publish of the GPUs that a run can be planned for."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_lpc.training.mfu import known_peak_tflops

GIB = 1 << 30


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One GPU of a server in which all are connected by NVLink."""

    name: str
    memory_gib: float
    """The vendor's number of GB; drivers report about as many GiB."""
    memory_gb_per_second: float
    """HBM bandwidth, 10^9 bytes per second."""
    nvlink_gb_per_second: float
    """NVLink bandwidth in one direction, 10^9 bytes per second; vendors publish both directions together."""
    network_gb_per_second: float
    """InfiniBand bandwidth of each GPU, 10^9 bytes per second: 1/8 of the Gbit/s of its adapter."""
    nvlink_domain: int
    """GPUs that NVLink connects."""

    @property
    def peak_tflops(self) -> float:
        """Dense bf16 peak."""
        peak = known_peak_tflops(self.name)
        assert peak is not None
        return peak


_GPUS = (
    # NVIDIA A100 80GB SXM data sheet (2039 GB/s, NVLink 600 GB/s); DGX A100 data sheet (8 x 200 Gb/s).
    Gpu(
        name="A100",
        memory_gib=80,
        memory_gb_per_second=2039,
        nvlink_gb_per_second=300,
        network_gb_per_second=25,
        nvlink_domain=8,
    ),
    # NVIDIA H100 SXM data sheet (3.35 TB/s, NVLink 900 GB/s); DGX H100 data sheet (8 x 400 Gb/s).
    Gpu(
        name="H100",
        memory_gib=80,
        memory_gb_per_second=3350,
        nvlink_gb_per_second=450,
        network_gb_per_second=50,
        nvlink_domain=8,
    ),
    # NVIDIA H200 SXM data sheet (141 GB, 4.8 TB/s, NVLink 900 GB/s); DGX H200 data sheet (8 x 400 Gb/s).
    Gpu(
        name="H200",
        memory_gib=141,
        memory_gb_per_second=4800,
        nvlink_gb_per_second=450,
        network_gb_per_second=50,
        nvlink_domain=8,
    ),
    # NVIDIA DGX B200 data sheet, of 8 GPUs: 1440 GB, 64 TB/s, NVLink 14.4 TB/s, 8 x 400 Gb/s.
    Gpu(
        name="B200",
        memory_gib=180,
        memory_gb_per_second=8000,
        nvlink_gb_per_second=900,
        network_gb_per_second=50,
        nvlink_domain=8,
    ),
    # NVIDIA GB200 NVL72 data sheet, of 72 GPUs: 13.4 TB, 576 TB/s, NVLink 130 TB/s, 72 x 400 Gb/s.
    Gpu(
        name="GB200",
        memory_gib=186,
        memory_gb_per_second=8000,
        nvlink_gb_per_second=900,
        network_gb_per_second=50,
        nvlink_domain=72,
    ),
)
GPUS = {gpu.name: gpu for gpu in _GPUS}
"""By name. The peaks of matrix products are those by which training computes its MFU."""
