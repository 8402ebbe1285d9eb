"""Where on a film the model finds what speaks for a class: Grad-CAM, without a backward pass and without torch."""

from __future__ import annotations

import numpy as np


def grad_cam(weights: np.ndarray, feature_map: np.ndarray) -> np.ndarray:
    """Grad-CAM (Selvaraju et al. 2017, equations 1 and 2) of a class's logit.

    Args:
        weights: (512,) the class's row of ``head.cam_weights``.
        feature_map: (512, h, w) float32.

    Returns:
        (h, w) float32, 0 or more; 0 everywhere where nothing speaks for the class.
    """
    heat = np.tensordot(weights, feature_map.astype(np.float64), axes=1)
    return np.maximum(heat, 0.0).astype(np.float32)
