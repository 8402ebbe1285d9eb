"""Where the network is computed: the processor, or one GPU. The same code for all; here is what differs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def put(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """An array on a device; the host does not wait for a GPU to take it."""
    import torch

    tensor = torch.from_numpy(array)
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
