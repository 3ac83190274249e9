"""What a step would cost on machines that one does not have yet: rooflines for the parts, events for their overlap.

hardware.py     devices and their public peaks
roofline.py     seconds and bytes of decoding, training and sending weights
simulation.py   a batch of samples decoded with slots; sampling and learning side by side
advice.py       every split of a fleet, which fit, and the fastest
"""

from __future__ import annotations

__all__: list[str] = []
