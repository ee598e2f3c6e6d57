"""What one device of each TPU generation can do, as its maker states it."""

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


def chip(device_kind: str) -> Chip | None:
    """The figures of a device, None where they are not known: better none than wrong ones."""
    return CHIPS.get(device_kind)
