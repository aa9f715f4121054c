"""``make demo``: the whole system at work on one song, then stopped again."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from model_repository.weights.__main__ import main as weights
from servers.local.process import StackError
from servers.local.running import running_stack
from servers.media.synthetic import write_song


def demo(song: Path | None, out: Path) -> int:
    """Separate ``song`` (None: a synthetic one) into ``out``; returns the exit status."""
    out.mkdir(parents=True, exist_ok=True)
    if song is None:
        song = out / "song.flac"
        write_song(song, seconds=20.0)
        print(f"no SONG was given: made one, {song}")
    elif not song.is_file():
        print(f"there is no file {song}", file=sys.stderr)
        return 2
    if status := weights(["fetch", "htdemucs"]):
        return status
    try:
        with (
            tempfile.TemporaryDirectory(prefix="contrafact-demo-") as data,
            running_stack(data, weights=False, report=lambda line: print(line, flush=True)) as stack,
        ):
            command = [
                sys.executable,
                "-m",
                "contrafact",
                "separate",
                str(song),
                "--output",
                str(out),
                "--stems",
                "all",
            ]
            environment = {**os.environ, "CONTRAFACT_ADDRESS": stack.api_address}
            status = subprocess.run(command, env=environment, check=False).returncode
    except StackError as error:
        print(f"contrafact: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:  # the command line has got it too, and cancelled the job
        return 130
    if status == 0:
        print(f"the stems of {song.name} are in {out.absolute()}")
    return status


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("song", nargs="?", type=Path)
    parser.add_argument("--out", type=Path, default=Path("out/demo"))
    arguments = parser.parse_args()
    sys.exit(demo(arguments.song, arguments.out))
