"""Progress of a long command: JSON lines, a live display on a terminal, or a plain line now and then."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import typer

from contrafact._cli.output import as_json, json_line, size

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from contrafact._result_stream import ResultProgress
    from contrafact._stems import StemProgress
    from contrafact.v1.job_pb2 import JobEvent


class Reporter(Protocol):
    """Where a command says how far it is."""

    def bytes_done(self, what: str, done: int, total: int | None) -> None:
        """Bytes were sent or received."""

    def about(self, event: str, message: Message) -> None:
        """Something is known now: a track, a job."""

    def job_event(self, event: JobEvent) -> None:
        """Something happened to the job."""

    def stem(self, progress: StemProgress) -> None:
        """More of a stem is on disk."""

    def result(self, what: str, progress: ResultProgress) -> None:
        """More of a cover or a mix is on disk."""

    def note(self, text: str, **facts: Any) -> None:
        """Something that the user should know."""

    def saved(self, paths: dict[str, Path], summary: str, **facts: Any) -> None:
        """All is done."""

    def close(self) -> None:
        """Nothing more will come."""


class JsonLines:
    """One JSON object a line on standard output; each has "event"."""

    def bytes_done(self, what: str, done: int, total: int | None) -> None:
        """{"event": "upload", "bytes", "total"}."""
        json_line({"event": what, "bytes": done, "total": total})

    def about(self, event: str, message: Message) -> None:
        """{"event": "track", "track": {…}} and the like."""
        json_line({"event": event, event: as_json(message)})

    def job_event(self, event: JobEvent) -> None:
        """{"event": "job" | "progress" | "piece" | "artifact", …, "cursor", "event_time"}."""
        json_line({"event": event.WhichOneof("event") or "unknown", **as_json(event)})

    def stem(self, progress: StemProgress) -> None:
        """{"event": "stem", "stem", "path", "bytes", "frames_ready", "finished"}."""
        json_line(
            {
                "event": "stem",
                "stem": progress.stem,
                "path": str(progress.path),
                "bytes": progress.size_bytes,
                "frames_ready": progress.frames_ready,
                "finished": progress.finished,
            }
        )

    def result(self, what: str, progress: ResultProgress) -> None:
        """{"event": "cover" | "mix", "path", "bytes", "frames_ready", "finished"}."""
        json_line(
            {
                "event": what,
                "path": str(progress.path),
                "bytes": progress.size_bytes,
                "frames_ready": progress.frames_ready,
                "finished": progress.finished,
            }
        )

    def note(self, text: str, **facts: Any) -> None:
        """{"event": "note", "message"}."""
        json_line({"event": "note", "message": text, **facts})

    def saved(self, paths: dict[str, Path], summary: str, **facts: Any) -> None:
        """{"event": "done", "files": {"vocals" or "cover": path}, …}."""
        json_line({"event": "done", "files": {what: str(path) for what, path in paths.items()}, **facts})

    def close(self) -> None:
        """Nothing to do."""


class Plain:
    """A line on standard error at each new stage, and every five seconds."""

    interval = 5.0

    def __init__(self) -> None:
        self._last_line = 0.0
        self._last_stage = ""

    def show(self, stage: str, fraction: float | None, detail: str) -> None:
        """Print the line, if it is time."""
        now = time.monotonic()
        if stage == self._last_stage and now - self._last_line < self.interval:
            return
        self._last_line, self._last_stage = now, stage
        percent = "" if fraction is None else f" {fraction:4.0%}"
        typer.echo(f"{stage}{percent}  {detail}".rstrip(), err=True)

    def bytes_done(self, what: str, done: int, total: int | None) -> None:
        """Show how much was sent or received."""
        fraction = done / total if total else None
        self.show(what, fraction, f"{size(done)} of {size(total)}" if total else size(done))

    def about(self, event: str, message: Message) -> None:
        """Keep quiet: people see what follows from it."""

    def job_event(self, event: JobEvent) -> None:
        """Show stage, percentage and time left."""
        from contrafact import _words

        if event.HasField("progress"):
            at = event.progress
            left = f"{at.eta.ToSeconds()} s left" if at.HasField("eta") else ""
            stage = _words.stage_word(at.stage) or "waiting"
            self.show(stage, at.fraction, left)
        elif event.HasField("job"):
            waiting = event.job.queue_position
            self.show(
                _words.state_word(event.job.state),
                event.job.fraction,
                f"{waiting} before it" if waiting else "",
            )

    def stem(self, progress: StemProgress) -> None:
        """Keep quiet until it is finished."""
        if progress.finished:
            self.note(f"{progress.stem} is finished")

    def result(self, what: str, progress: ResultProgress) -> None:
        """Keep quiet: there is only one, and its end is told."""

    def note(self, text: str, **facts: Any) -> None:
        """Print a line."""
        typer.echo(text, err=True)

    def saved(self, paths: dict[str, Path], summary: str, **facts: Any) -> None:
        """Print the paths on standard output, the summary on standard error."""
        self.close()
        for path in paths.values():
            typer.echo(str(path))
        typer.echo(summary, err=True)

    def close(self) -> None:
        """Nothing to do."""


class Terminal(Plain):
    """A bar that moves, on standard error."""

    def __init__(self) -> None:
        super().__init__()
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[detail]}"),
            console=Console(stderr=True, highlight=False),
            transient=True,
        )
        self._task = self._bar.add_task("", total=1.0, detail="")
        self._bar.start()

    def show(self, stage: str, fraction: float | None, detail: str) -> None:
        """Move the bar; it pulses while nobody knows how far it is."""
        self._bar.update(
            self._task,
            description=stage,
            total=None if fraction is None else 1.0,
            completed=fraction or 0.0,
            detail=detail,
        )

    def note(self, text: str, **facts: Any) -> None:
        """Print a line above the bar."""
        self._bar.console.print(text, markup=False)

    def close(self) -> None:
        """Remove the bar."""
        self._bar.stop()


def reporter(json: bool) -> Reporter:
    """Return the reporter that fits: for machines if asked for, else by what standard error is."""
    if json:
        return JsonLines()
    return Terminal() if sys.stderr.isatty() else Plain()
