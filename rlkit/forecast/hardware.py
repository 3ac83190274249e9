"""Devices: peaks from their makers' data sheets, and the share of a peak that programs reach.

`Efficiency` holds what no data sheet says. Its defaults were fitted on the rows that docs/planner_backtest.md marks as
calibration, and on no others.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from rlkit.errors import RlkitError, nearest

__all__ = ["DEVICES", "Device", "Efficiency", "Fleet", "parse_fleet"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Efficiency:
    """Shares of the peaks that are reached."""

    bandwidth: float = 0.8
    """Of memory bandwidth, by decoding."""
    decode_overhead_s: float = 0.0005
    """Of every decoding step, however small: launches, sampling, scheduling."""
    prefill: float = 0.5
    """Of peak FLOP/s, by scoring prompts."""
    training: float = 0.45
    """Of peak FLOP/s, by forward and backward."""
    link: float = 0.7
    """Of link bandwidth, by collectives."""
    collective_s: float = 9e-6
    """Of every all-reduce inside a decoding step, however small: vLLM's on H100s (planner_backtest.md, source J)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One GPU, or one CPU core."""

    name: str
    flops: float
    """Dense peak in the dtype that is trained in: bfloat16 on GPUs, float32 on a CPU. FLOP/s."""
    bandwidth: float
    """Of its memory, bytes/s."""
    memory: float
    """Bytes."""
    node_link: float
    """To a device of the same node, one direction, bytes/s."""
    far_link: float = 50e9
    """To another node: one 400 Gb/s port, bytes/s."""
    efficiency: Efficiency = Efficiency()
    gpu: bool = True
    """Whether a recipe asks for it as a GPU."""


def _gpu(name: str, tflops: float, tb_s: float, gb: float, link_gb_s: float, far_gb_s: float = 50) -> Device:
    return Device(
        name=name,
        flops=tflops * 1e12,
        bandwidth=tb_s * 1e12,
        memory=gb * 1e9,
        node_link=link_gb_s * 1e9,
        far_link=far_gb_s * 1e9,
    )


DEVICES = {
    device.name.lower(): device
    for device in (
        # data sheets; NVLink's figure is both directions, so half of it here; PCIe 4.0 x16 is 32 GB/s
        _gpu("A100", 312, 2.039, 80, 300, 25),
        _gpu("A100-40G", 312, 1.555, 40, 300, 25),
        _gpu("A800", 312, 2.039, 80, 200, 25),
        _gpu("H100", 989, 3.35, 80, 450),
        _gpu("H800", 989, 3.35, 80, 200),
        _gpu("H200", 989, 4.8, 141, 450),
        _gpu("H20", 148, 4.0, 96, 450),
        _gpu("GH200", 989, 4.0, 96, 450),
        _gpu("B200", 2250, 8.0, 180, 900),
        _gpu("L40S", 362, 0.864, 48, 32, 12.5),
        _gpu("L4", 121, 0.3, 24, 32, 12.5),
        _gpu("A10G", 70, 0.6, 24, 32, 12.5),
        _gpu("RTX4090", 165, 1.008, 24, 32, 12.5),
        # One core of this project's own machine (benchmarks/results/mfu.md): a Xeon with AVX-512, float32.
        Device(
            name="cpu",
            flops=203e9,
            bandwidth=13e9,
            memory=12e9,
            node_link=13e9,  # processes of one node share its memory
            far_link=1e9,
            efficiency=Efficiency(bandwidth=0.8, decode_overhead_s=0.075, prefill=0.62, training=0.62, link=0.133),
            gpu=False,
        ),
    )
}
"""Lower-case name -> device."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """Equal devices on equal nodes."""

    device: Device
    count: int
    per_node: int
    """Devices of one node; the last node may hold fewer."""

    def link(self, devices: int) -> float:
        """The slowest link that `devices` of them talk over, bytes/s."""
        return self.device.node_link if devices <= self.per_node else self.device.far_link

    def __str__(self) -> str:
        return f"{self.count}x{self.device.name}"


def parse_fleet(text: str) -> Fleet:
    """`8xH100`, or `4x8xH100` for four nodes of eight. Raises `RlkitError` naming the nearest known device."""
    found = re.fullmatch(r"(?:(\d+)x)?(\d+)x([A-Za-z][\w-]*)", text.strip())
    if found is None:
        raise RlkitError(f"--cluster: '{text}' is not COUNTxDEVICE or NODESxCOUNTxDEVICE, for example 8xH100")
    nodes, count, name = found.groups()
    if name.lower() not in DEVICES:
        known = nearest(name.upper(), [device.name for device in DEVICES.values()])
        raise RlkitError(f"--cluster: unknown device '{name}'{known}")
    total = int(count) * int(nodes or 1)
    if total < 1:
        raise RlkitError(f"--cluster: '{text}' has no device")
    return Fleet(device=DEVICES[name.lower()], count=total, per_node=int(count) if nodes else min(total, 8))
