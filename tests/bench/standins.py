"""Generated weights of full size: what they compute is noise, what it costs is not."""

from __future__ import annotations

from pathlib import Path

import torch

from model_repository.rvc import standin
from model_repository.weights import cache_folder
from tests.fixtures.rvc import make_checkpoint


def content() -> Path:
    """The content encoder in the weights' folder, made if it is not there."""
    path: Path = cache_folder() / standin.CONTENT_FILE
    if not path.exists():
        standin.content(path)
    return path


def voice(folder: Path, seed: int) -> Path:
    """A v2 voice of 40 kHz, 55 MB."""
    path = folder / f"voice-{seed}.pth"
    if not path.exists():
        standin.voice(path, seed)
    return path


def rmvpe(folder: Path) -> Path:
    """RMVPE, 181 MB."""
    path = folder / "rmvpe.pt"
    torch.save(make_checkpoint.build("rmvpe")[0], path)
    return path


def environment(folder: Path) -> dict[str, str]:
    """Settings by which the real voice model uses these and nothing else."""
    return {"CONTRAFACT_RVC_CONTENT": str(content()), "CONTRAFACT_RVC_RMVPE": str(rmvpe(folder))}
