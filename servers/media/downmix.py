"""Surround to stereo, with the coefficients of ITU-R BS.775-4 Annex 4 as libswresample applies them to
floats.

``L = FL + √½·FC + √½·BL + √½·SL + ½·BC`` and its mirror image; the LFE channel is left out. Nothing is
normalised: loud surround material may exceed full scale, which float32 carries without loss. (libswresample
normalises only when it converts to integers.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_HALF_POWER = math.sqrt(0.5)

_TO_STEREO: dict[str, tuple[float, float]] = {
    "FL": (1.0, 0.0),
    "FR": (0.0, 1.0),
    "FC": (_HALF_POWER, _HALF_POWER),
    "LFE": (0.0, 0.0),
    "BL": (_HALF_POWER, 0.0),
    "BR": (0.0, _HALF_POWER),
    "SL": (_HALF_POWER, 0.0),
    "SR": (0.0, _HALF_POWER),
    "BC": (0.5, 0.5),
    "FLC": (1.0, 0.0),
    "FRC": (0.0, 1.0),
}

DEFAULT_LAYOUTS: dict[int, tuple[str, ...]] = {
    3: ("FL", "FR", "LFE"),
    4: ("FL", "FR", "FC", "BC"),
    5: ("FL", "FR", "FC", "BL", "BR"),
    6: ("FL", "FR", "FC", "LFE", "BL", "BR"),
    7: ("FL", "FR", "FC", "LFE", "BC", "SL", "SR"),
    8: ("FL", "FR", "FC", "LFE", "BL", "BR", "SL", "SR"),
}
"""What a file that does not name its channels means (``av_channel_layout_default``)."""


def stereo_matrix(names: Sequence[str]) -> NDArray[np.float32]:
    """The ``[2, channels]`` matrix for more than two channels, by their FFmpeg names (``FL``, ``LFE``, …).

    If a name is unknown to us the default layout for that many channels is assumed, as for unnamed channels:
    losing a channel silently would be worse than placing it wrongly.
    """
    known = all(name in _TO_STEREO for name in names) and len(set(names)) == len(names)
    used = names if known else DEFAULT_LAYOUTS[len(names)]
    return np.array([_TO_STEREO[name] for name in used], dtype=np.float32).T
