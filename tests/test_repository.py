"""The repository itself: generated code is fresh, style and types are clean, nothing is there that must not be."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from filecmp import dircmp
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
STUBS = ROOT / "clients" / "python" / "src"


def run(*command: str) -> subprocess.CompletedProcess[str]:
    """Run a program of this environment in the repository."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PATH": path}, capture_output=True, text=True, check=False
    )


def tracked() -> list[Path]:
    """Files that git tracks."""
    listing = run("git", "ls-files", "-z")
    if listing.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listing.stdout.split("\0") if name]


def differences(left: Path, right: Path) -> list[str]:
    """Files that are not the same in both folders."""
    comparison = dircmp(left, right, ignore=["__pycache__"])
    found = [*comparison.left_only, *comparison.right_only, *comparison.diff_files]
    for name in comparison.common_dirs:
        found += differences(left / name, right / name)
    return found


def test_stubs_are_fresh(tmp_path: Path) -> None:
    result = run(sys.executable, "protos/generate.py", "--stubs", str(tmp_path))
    assert result.returncode == 0, result.stderr
    for package in ("contrafact/v1", "contrafact/engine", "buf"):
        assert differences(tmp_path / package, STUBS / package) == [], "run `make protos`"


def test_protos_are_linted(tmp_path: Path) -> None:
    buf = ROOT / ".npm" / "node_modules" / ".bin" / "buf"
    if not buf.exists() and run("make", str(buf.relative_to(ROOT))).returncode:
        pytest.skip("buf cannot be installed here")
    image = tmp_path / "image.binpb"
    assert run(sys.executable, "protos/generate.py", "--stubs", str(tmp_path), "--image", str(image)).returncode == 0
    result = run(str(buf), "lint", str(image), "--path", "contrafact")
    assert result.returncode == 0, result.stdout
    released = str(ROOT / "protos" / "released.binpb")
    result = run(str(buf), "breaking", str(image), "--against", released, "--path", "contrafact")
    assert result.returncode == 0, result.stdout


@pytest.mark.timeout(900)  # without a cache, beside other tests
@pytest.mark.parametrize("command", [("ruff", "check"), ("ruff", "format", "--check"), ("mypy",)], ids=" ".join)
def test_is_clean(command: tuple[str, ...]) -> None:
    result = run(sys.executable, "-m", *command)
    assert result.returncode == 0, result.stdout + result.stderr


def test_imports_go_down_only() -> None:
    """local → orchestrator → inference, media, storage → platform; models know nothing of servers."""
    below: dict[str, set[str]] = {
        "platform": {"platform"},
        "media": {"media", "platform"},
        "mixer": {"mixer", "media", "platform"},  # an engine knows audio, and neither storage nor the orchestrator
        "analyzer": {"analyzer", "media", "platform"},
        "grains": {"grains", "media", "platform"},
        "storage": {"storage", "platform"},
        "inference": {"inference", "media", "storage", "platform"},
        # The analyzer's version and arithmetic, as of albums, on what it has measured; the form of grain libraries;
        # where inputs come in a mix.
        "orchestrator": {"orchestrator", "analyzer", "grains", "mixer", "inference", "media", "storage", "platform"},
        "local": {"local", "orchestrator", "inference", "media", "storage", "platform"},
    }
    wrong = []
    for path in sorted((ROOT / "servers").rglob("*.py")):
        room = path.relative_to(ROOT / "servers").parts[0]
        for imported in re.findall(r"^\s*(?:from|import) servers\.(\w+)", path.read_text(), re.MULTILINE):
            if room in below and imported not in below[room]:
                wrong.append(f"{path.relative_to(ROOT)} imports {imported}")
    for path in (ROOT / "model_repository").rglob("*.py"):
        if re.search(r"^\s*(?:from|import) servers\b", path.read_text(), re.MULTILINE):
            wrong.append(f"{path.relative_to(ROOT)} imports servers")
    assert wrong == []


def test_the_sdk_needs_no_server() -> None:
    code = "import contrafact, sys; contrafact.Client; print(*sorted(sys.modules))"
    loaded = run(sys.executable, "-c", code).stdout.split()
    assert "contrafact" in loaded
    assert not {"servers", "torch", "numpy", "model_repository", "tritonclient"} & {m.split(".")[0] for m in loaded}


def test_nothing_is_committed_that_must_not_be() -> None:
    media = {".flac", ".wav", ".mp3", ".ogg", ".opus", ".m4a", ".safetensors", ".onnx", ".pth", ".th", ".pt"}
    assert [path for path in tracked() if path.suffix in media] == []
    text = [
        path for path in tracked() if path.suffix in {".py", ".md", ".toml", ".yml", ".yaml", ".proto", ".lock", ""}
    ]
    hosts = re.compile("registry" + r"\.npmjs|pypi" + r"\.org|deb\.debian" + r"\.org|/root/" + r"\.|/work" + "/main")
    assert [path for path in text if path.is_file() and hosts.search(path.read_text(errors="ignore"))] == []
