"""The real htdemucs weights: the network on each backend against demucs' own forward, and served by Triton."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from model_repository import weights
from model_repository.weights import htdemucs

if TYPE_CHECKING:
    from tests.model_repository.conftest import Start

ROOT = Path(__file__).resolve().parents[2]
REPOSITORY = ROOT / "model_repository"

pytestmark = [pytest.mark.weights, pytest.mark.slow]


@pytest.fixture(scope="module")
def weights_file() -> Path:
    try:
        return weights.path("htdemucs")
    except weights.WeightsMissing as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def model_modules() -> Iterator[None]:
    """The import path that model.py sets inside Triton."""
    added = [str(REPOSITORY / "htdemucs" / "1"), str(REPOSITORY)]
    sys.path[:0] = added
    yield
    for path in added:
        sys.path.remove(path)


@pytest.fixture(scope="module")
def mix() -> NDArray[Any]:
    return htdemucs.check_input()


@pytest.fixture(scope="module")
def reference(weights_file: Path, mix: NDArray[Any]) -> NDArray[Any]:
    """Stems ``[4, 2, SEGMENT]`` by the demucs package alone, as its users run it."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(True)
    try:
        with torch.inference_mode():
            stems: NDArray[Any] = htdemucs.load(weights_file)(torch.from_numpy(mix)[None])[0].numpy()
            return stems
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def worst_ratio(reference: NDArray[Any], stems: NDArray[Any]) -> float:
    """Signal to difference, dB, of the stem where it is worst."""
    signal = (reference.astype(np.float64) ** 2).sum(axis=(1, 2))
    noise = ((stems.astype(np.float64) - reference) ** 2).sum(axis=(1, 2))
    return float(10 * np.log10((signal / noise).min()))


# Measured on music: torch 124 dB, OpenVINO 91 dB; on this input the stem `other` is 35 dB below the mix.
@pytest.mark.parametrize(("backend", "decibels"), [("torch", 90.0), ("openvino", 70.0)])
def test_each_backend_agrees_with_demucs(
    model_modules: None, weights_file: Path, mix: NDArray[Any], reference: NDArray[Any], backend: str, decibels: float
) -> None:
    if backend == "openvino":
        pytest.importorskip("openvino")
    import network  # type: ignore[import-not-found]
    import settings  # type: ignore[import-not-found]

    separator = network.Separator(weights_file, settings.Settings.read({"backend": backend, "threads": "2"}))
    batch = torch.from_numpy(np.stack([mix, -mix]))
    if backend == "openvino":  # and one that was stopped does not disturb the next
        assert separator(batch, lambda: True) is None
    stems: Any = separator(batch).numpy()
    assert stems.shape == (2, 4, 2, htdemucs.SEGMENT)
    assert stems.dtype == np.float32
    assert worst_ratio(reference, stems[0]) > decibels
    # The second of the batch is another signal: it must not be a copy of the first.
    assert worst_ratio(reference, stems[1]) < 10.0


def test_triton_serves_it(
    start_triton: Start, tmp_path: Path, weights_file: Path, mix: NDArray[Any], reference: NDArray[Any]
) -> None:
    with start_triton(tmp_path, REPOSITORY, {}) as server:
        server.client.load_model("htdemucs")
        stems = server.infer(mix[None])
    assert worst_ratio(reference, stems[0]) > 70.0


def test_without_weights_the_model_says_how_to_get_them(start_triton: Start, tmp_path: Path) -> None:
    from tritonclient.utils import InferenceServerException

    with (
        start_triton(tmp_path, REPOSITORY, {"CONTRAFACT_WEIGHTS_DIR": str(tmp_path / "empty")}) as server,
        pytest.raises(InferenceServerException, match=r"not in the cache; run: python -m .* fetch htdemucs"),
    ):
        server.client.load_model("htdemucs")


def test_the_numeric_check_notices_a_changed_network(
    weights_file: Path, mix: NDArray[Any], reference: NDArray[Any], tmp_path: Path
) -> None:
    expected = weights.load_registry()["htdemucs"].check
    htdemucs.compare(weights_file, expected, htdemucs.statistics(mix, reference))
    swapped = reference[[1, 0, 2, 3]]
    with pytest.raises(weights.WeightsError, match=r"drums deviation: expected 0\.124480"):
        htdemucs.compare(weights_file, expected, htdemucs.statistics(mix, swapped))
    with pytest.raises(weights.WeightsError, match="computes something else"):
        htdemucs.compare(weights_file, expected, htdemucs.statistics(mix, reference * np.nan))
