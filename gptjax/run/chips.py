"""What one device can do at most, as its maker states it, by the name that JAX gives to its kind."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Chip:
    """Peak figures of one JAX device.

    hbm_bytes.  flops: bfloat16 multiply-adds, 2 each, per second.  hbm_bandwidth: bytes per second.
    ici_bandwidth: bytes per second that leave over all links to neighbours; ici_dims: directions of the torus, which
    share it.  dcn_bandwidth: bytes per second to other slices.
    """

    hbm_bytes: float
    flops: float
    hbm_bandwidth: float
    ici_bandwidth: float
    ici_dims: int
    dcn_bandwidth: float


# By device_kind. Source: docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e}, tables of key specifications, read in 2026.
# ICI is half of the "bidirectional bandwidth per chip". DCN per chip: v5p 50 Gbit/s; v5e and v6e from hosts of 8 chips
# with 2 x 100 and 4 x 200 Gbit/s; v4 from hosts of 4 chips with 200 Gbit/s (v4's and v6e's hosts: Austin et al. 2025,
# "How to scale your model", chapter 2).
CHIPS: dict[str, Chip] = {
    "TPU v4": Chip(
        hbm_bytes=32 * 2**30, flops=275e12, hbm_bandwidth=1200e9, ici_bandwidth=270e9, ici_dims=3, dcn_bandwidth=6.25e9
    ),
    "TPU v5 lite": Chip(
        hbm_bytes=16 * 2**30, flops=197e12, hbm_bandwidth=819e9, ici_bandwidth=200e9, ici_dims=2, dcn_bandwidth=3.125e9
    ),
    "TPU v5": Chip(
        hbm_bytes=95 * 2**30, flops=459e12, hbm_bandwidth=2765e9, ici_bandwidth=600e9, ici_dims=3, dcn_bandwidth=6.25e9
    ),
    "TPU v6 lite": Chip(
        hbm_bytes=32 * 2**30, flops=918e12, hbm_bandwidth=1638e9, ici_bandwidth=400e9, ici_dims=2, dcn_bandwidth=12.5e9
    ),
}


# Dense bfloat16 FLOP/s of one JAX device, which is a core on TPU v3 and half a chip on TPU7x, else a chip. Sources:
# the pages of each version under cloud.google.com/tpu/docs and NVIDIA's data sheets, the figures without sparsity.
PEAK_BF16_FLOPS: dict[str, float] = {kind: figures.flops for kind, figures in CHIPS.items()} | {
    "TPU v3": 61.5e12,
    "TPU v5e": 197e12,
    "TPU v5p": 459e12,
    "TPU v6e": 918e12,
    "TPU7x": 1153.5e12,
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A100-PCIE-40GB": 312e12,
    "NVIDIA A100 80GB PCIe": 312e12,
    "NVIDIA H100 80GB HBM3": 989.4e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA H200": 989.4e12,
    "NVIDIA B200": 2250e12,
    "NVIDIA GB200": 2500e12,
    "NVIDIA L4": 121e12,
    "NVIDIA L40S": 362e12,
}


def chip(device_kind: str) -> Chip | None:
    """The figures of a device, None where they are not known: better none than wrong ones."""
    return CHIPS.get(device_kind)


def peak_flops(device_kinds: list[str]) -> float | None:
    """Dense bfloat16 FLOP/s of all these devices together; None if one of them is unknown: no figure beats a wrong one.

    Args:
        device_kinds: `device_kind` of each device.
    """
    peaks = [PEAK_BF16_FLOPS.get(kind) for kind in device_kinds]
    known = [peak for peak in peaks if peak is not None]
    return sum(known) if known and len(known) == len(peaks) else None
