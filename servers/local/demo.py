"""``make demo``: the whole system at work on one song, then stopped again."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from model_repository.rvc import standin, training
from model_repository.weights import path as weights_path
from model_repository.weights.__main__ import main as weights
from servers.local.process import StackError
from servers.local.running import running_stack
from servers.media.synthetic import write_song, write_stem

NAME, SOUND = "Demo", "Demo sound"
SHARED = Path(__file__).resolve().parents[3] / "shared" / "audio" / "sorohanro_-_solo-trumpet-06.hq.ogg"


@dataclass(frozen=True)
class Singer:
    """A voice to import, and what the models need for it; ``about`` says what it is."""

    file: Path
    about: str
    environment: dict[str, str] = field(default_factory=dict)


def demo(song: Path | None, style: Path | None, out: Path) -> int:
    """Cover ``song`` (None: a synthetic one), separate and mix it, into ``out``; returns the exit status.

    Its drums are played with the sound ``style`` (None: a recording that lies beside the project, or a synthetic one).
    """
    out.mkdir(parents=True, exist_ok=True)
    if song is None:
        song = out / "song.flac"
        write_song(song, seconds=20.0)
        print(f"no SONG was given: made one, {song}")
    if style is None and SHARED.is_file():
        style = SHARED
    elif style is None:
        style = out / "style.flac"
        write_stem(style, "vocals", seconds=10.0)
        print(f"no STYLE was given: made a sound, {style}")
    for file in (song, style):
        if not file.is_file():
            print(f"there is no file {file}", file=sys.stderr)
            return 2
    if status := weights(["fetch", "htdemucs"]):
        return status
    try:
        with tempfile.TemporaryDirectory(prefix="contrafact-demo-") as folder:
            singer = _singer(Path(folder))
            with running_stack(
                Path(folder) / "data",
                weights=False,
                environment=singer.environment,
                report=lambda line: print(line, flush=True),
            ) as stack:
                status = _work(song, style, out, singer, stack.api_address)
    except StackError as error:
        print(f"contrafact: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:  # the command line has got it too, and cancelled the job
        return 130
    if status == 0:
        print(f"the covers, the stems and the mix of {song.name} are in {out.absolute()}")
        print(f"the voice: {singer.about}")
        print(f"what plays the drums: {style.name}")
    return status


def _work(song: Path, style: Path, out: Path, singer: Singer, address: str) -> int:
    """What a user does, with the command; the exit status of the first that fails."""
    work = [
        ["voices", "import", str(singer.file), "--name", NAME],
        # While it is made, from the song to the mix; then the stems; what it sounds like; a cover that needs no
        # separation any more; and its drums played by another sound.
        ["cover", str(song), "--voice", NAME, "--output", str(out / "cover.opus")],
        ["separate", str(song), "--output", str(out), "--stems", "all"],
        ["analyze", str(song)],
        ["cover", str(song), "--voice", NAME, "--key", "-12", "--output", str(out / "cover-low.flac"), "--no-live"],
        ["styles", "add", str(style), "--name", SOUND, "--segmentation", "onsets"],
        ["mix", str(song), "--drums", SOUND, "--output", str(out / "mix.flac")],
    ]
    environment = {**os.environ, "CONTRAFACT_ADDRESS": address}
    for arguments in work:
        print(f"$ contrafact {' '.join(arguments)}", flush=True)
        command = [sys.executable, "-m", "contrafact", *arguments]
        if status := subprocess.run(command, env=environment, check=False).returncode:
            return status
    return 0


def _singer(folder: Path) -> Singer:
    """RVC's published base voice, or, where it cannot be reached, a generated stand-in."""
    voice = folder / "voice.pth"
    if weights(["fetch", "contentvec", "rvc-base"]) == 0:
        weights(["fetch", "rmvpe"])  # a better pitch, but not needed
        training.inference_checkpoint(weights_path("rvc-base"), "v2-40k-f0", voice)
        return Singer(voice, "RVC's published base generator (v2, 40 kHz, many speakers, the first of them)")
    print("the voice's weights cannot be reached: generating stand-ins for them", flush=True)
    content = folder / standin.CONTENT_FILE
    standin.content(content)
    standin.voice(voice)
    about = "a generated stand-in, which follows the melody but sings noise: real weights could not be reached"
    return Singer(voice, about, {"CONTRAFACT_RVC_CONTENT": str(content)})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("song", nargs="?", type=Path)
    parser.add_argument("--style", type=Path)
    parser.add_argument("--out", type=Path, default=Path("out/demo"))
    arguments = parser.parse_args()
    sys.exit(demo(arguments.song, arguments.style, arguments.out))
