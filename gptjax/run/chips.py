"""What a device can do at most, by the name that JAX gives to its kind."""

# Dense bfloat16 FLOP/s of one JAX device, which is a core on TPU v3 and half a chip on TPU7x, else a chip. Sources:
# the pages of each version under cloud.google.com/tpu/docs and NVIDIA's data sheets, the figures without sparsity.
PEAK_BF16_FLOPS: dict[str, float] = {
    "TPU v3": 61.5e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
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


def peak_flops(device_kinds: list[str]) -> float | None:
    """Dense bfloat16 FLOP/s of all these devices together; None if one of them is unknown: no figure beats a wrong one.

    Args:
        device_kinds: `device_kind` of each device.
    """
    peaks = [PEAK_BF16_FLOPS.get(kind) for kind in device_kinds]
    known = [peak for peak in peaks if peak is not None]
    return sum(known) if known and len(known) == len(peaks) else None
