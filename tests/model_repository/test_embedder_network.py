"""The embedder's network on each backend, and files that it refuses."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from model_repository import weights
from tests.inference.networks import DIMENSIONS, HOP, RATE, WINDOW, expected, write_network

FOLDER = Path(__file__).resolve().parents[2] / "model_repository" / "embedder" / "1"


@pytest.fixture(scope="module")
def embedder() -> Iterator[SimpleNamespace]:
    """The model's modules, imported as inside Triton, where no other model's of the same names are."""
    names = ("about", "network", "settings")
    others: dict[str, ModuleType] = {name: sys.modules.pop(name) for name in names if name in sys.modules}
    sys.path.insert(0, str(FOLDER))
    import network
    import settings

    yield SimpleNamespace(Network=network.Network, Settings=settings.Settings)
    sys.path.remove(str(FOLDER))
    for name in names:
        del sys.modules[name]
    sys.modules.update(others)


def noise(windows: int) -> NDArray[np.float32]:
    return np.random.default_rng(3).uniform(-1, 1, (windows, WINDOW)).astype(np.float32)


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_what_it_computes(embedder: Any, tmp_path: Path, backend: str) -> None:
    write_network(tmp_path / "tiny.onnx")
    network = embedder.Network(tmp_path / "tiny.onnx", embedder.Settings(backend=backend))
    about = network.about
    facts = (about.name, about.sample_rate, about.window, about.hop, about.dimensions)
    assert facts == ("tiny-1", RATE, WINDOW, HOP, DIMENSIONS)
    windows = noise(5)
    np.testing.assert_allclose(network(windows), expected(windows), atol=1e-4)
    np.testing.assert_array_equal(network(windows[2:3]), network(windows)[2:3])


def test_it_stops_when_nobody_wants_more(embedder: Any, tmp_path: Path) -> None:
    write_network(tmp_path / "tiny.onnx")
    network = embedder.Network(tmp_path / "tiny.onnx", embedder.Settings())
    answers = [False, False, True]
    assert network(noise(5), lambda: answers.pop(0)) is None
    assert answers == []


@pytest.mark.parametrize(
    ("metadata", "options", "text"),
    [
        ({"name": ""}, {}, "contrafact.name"),
        ({"name": "tiny"}, {}, "end in a version"),
        ({"window": ""}, {}, "contrafact.window must be a whole number"),
        ({"sample_rate": "8e3"}, {}, "contrafact.sample_rate must be a whole number"),
        ({"sample_rate": "4000"}, {}, "sample_rate is 4000, not 8000 to 48000"),
        ({"hop": "100"}, {}, "hop is 100, not 8000"),
        ({"hop": "16001"}, {}, "hop is longer"),
        ({}, {"dimensions": 513}, r"float32 \[1, 513\], not float32 \[1, 1 to 512\]"),
        ({}, {"scale": float("nan")}, "not finite"),
    ],
)
def test_networks_that_are_refused(
    embedder: Any, tmp_path: Path, metadata: dict[str, str], options: dict[str, Any], text: str
) -> None:
    write_network(tmp_path / "tiny.onnx", metadata, **options)
    with pytest.raises(ValueError, match=text):
        embedder.Network(tmp_path / "tiny.onnx", embedder.Settings())


def test_a_file_that_is_no_network_is_refused(embedder: Any, tmp_path: Path) -> None:
    (tmp_path / "tiny.onnx").write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match="not a readable ONNX file"):
        embedder.Network(tmp_path / "tiny.onnx", embedder.Settings())


def test_settings(embedder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert embedder.Settings.read({}).backend == "openvino"
    assert embedder.Settings.read({"threads": "3"}).threads == 3
    monkeypatch.setenv("CONTRAFACT_EMBEDDER_BACKEND", "onnxruntime")
    assert embedder.Settings.read({"backend": "openvino"}).backend == "onnxruntime"
    for wrong in ({"device": "tpu"}, {"threads": "-1"}):
        with pytest.raises(ValueError, match=f"setting {next(iter(wrong))}"):
            embedder.Settings.read(wrong)


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A network of the user's, and an empty cache."""
    digest = write_network(tmp_path / "mine.onnx")
    monkeypatch.setenv("CONTRAFACT_WEIGHTS_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("CONTRAFACT_EMBEDDER_SOURCE", str(tmp_path / "mine.onnx"))
    monkeypatch.setenv("CONTRAFACT_EMBEDDER_SHA256", digest)
    for name in ("CONTRAFACT_WEIGHTS_REGISTRY", "CONTRAFACT_WEIGHTS_LOCAL", "CONTRAFACT_WEIGHTS_URL"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "mine.onnx"


def test_the_registry_has_the_users_own_network(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(weights.WeightsMissing, match="fetch embedder"):
        weights.path("embedder")
    cached = weights.fetch("embedder")
    assert cached.read_bytes() == own.read_bytes()
    assert weights.path("embedder") == cached
    cached.write_bytes(b"x")
    with pytest.raises(weights.WeightsMissing, match="damaged"):
        weights.path("embedder")
    monkeypatch.setenv("CONTRAFACT_EMBEDDER_SHA256", "0" * 64)
    with pytest.raises(weights.WeightsError, match="sha256"):
        weights.fetch("embedder")


def test_a_network_that_is_not_named(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CONTRAFACT_EMBEDDER_SHA256")
    with pytest.raises(weights.WeightsError, match="CONTRAFACT_EMBEDDER_SHA256"):
        weights.fetch("embedder")
    assert "embedder" in weights.load_registry()  # and the others are found


@pytest.mark.parametrize(
    ("source", "kind", "options"),
    [
        ("/models/clap.onnx", "local", {"path": "/models/clap.onnx", "names": ["embedder.onnx"]}),
        ("https://host/a/clap.onnx?key=1", "object_store", {"url": "https://host/a", "key": "clap.onnx?key=1"}),
        ("s3://models/clap.onnx", "object_store", {"url": "s3://models", "key": "clap.onnx"}),
    ],
)
def test_where_the_users_own_network_is(
    own: Path, monkeypatch: pytest.MonkeyPatch, source: str, kind: str, options: dict[str, Any]
) -> None:
    monkeypatch.setenv("CONTRAFACT_EMBEDDER_SOURCE", source)
    first = weights.load_registry()["embedder"].sources[0]
    assert (first.kind, dict(first.options)) == (kind, options)
