"""What FFmpeg's meters say."""

from __future__ import annotations

import math
import re
from fractions import Fraction

import av
import av.filter
import av.logging
import numpy as np

from tests.media.signals import Samples

_PIECE = 16_384


def _metadata(samples: Samples, rate: int, name: str, options: str = "") -> dict[str, str]:
    """The last metadata that a filter of libavfilter writes about float32 ``[channels, n]``."""
    layout = {1: "mono", 2: "stereo"}[len(samples)]
    graph = av.filter.Graph()
    source = graph.add_abuffer(sample_rate=rate, format="fltp", layout=layout, time_base=Fraction(1, rate))
    meter, sink = graph.add(name, options), graph.add("abuffersink")
    source.link_to(meter)
    meter.link_to(sink)
    graph.configure()
    last: dict[str, str] = {}

    def pull() -> None:
        nonlocal last
        while True:
            try:
                last = dict(graph.pull().metadata) or last
            except (EOFError, av.error.BlockingIOError):
                return

    for start in range(0, samples.shape[1], _PIECE):
        piece = np.ascontiguousarray(samples[:, start : start + _PIECE])
        frame = av.AudioFrame.from_ndarray(piece, "fltp", layout)
        frame.sample_rate, frame.pts = rate, start
        graph.push(frame)
        pull()
    graph.push(None)
    pull()
    return last


def ebur128(samples: Samples, rate: int) -> dict[str, float]:
    """After ``ebur128``: ``I``, ``LRA``, ``M`` and ``S`` (the last ones) and ``true_peak`` in dBTP."""
    found = _metadata(samples, rate, "ebur128", "metadata=1:peak=true")
    values = {name.removeprefix("lavfi.r128."): float(value) for name, value in found.items()}
    peaks = [value for name, value in values.items() if name.startswith("true_peaks_ch")]
    return values | {"true_peak": 20 * math.log10(max(peaks))}


def statistics(samples: Samples, rate: int) -> dict[str, float]:
    """After ``astats``: "1.DC_offset" and the like."""
    found = _metadata(samples, rate, "astats", "metadata=1:reset=0")
    return {name.removeprefix("lavfi.astats."): float(value) for name, value in found.items()}


def dynamic_range(samples: Samples, rate: int) -> float:
    """DR after ``drmeter``, which only logs it, to 0.1 dB."""
    level = av.logging.get_level()
    av.logging.set_level(av.logging.INFO)
    try:
        with av.logging.Capture() as lines:
            _metadata(samples, rate, "drmeter")
    finally:
        av.logging.set_level(level)
    found = re.search(r"Overall DR: (-?[0-9.]+)", "".join(text for _, _, text in lines))
    assert found, lines
    return float(found.group(1))
