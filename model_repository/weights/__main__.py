"""``python -m model_repository.weights fetch|path|list``."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

from . import WeightsError, fetch, load_registry, path


def main(arguments: list[str] | None = None) -> int:
    """Run one command; the exit status is 0, 1 (weights), 2 (usage) or 130 (interrupted)."""
    parser = argparse.ArgumentParser(prog="python -m model_repository.weights", description="Model weights.")
    commands = parser.add_subparsers(dest="command", required=True)
    fetching = commands.add_parser("fetch", help="bring weight sets into the cache and print their paths")
    fetching.add_argument("names", nargs="+", metavar="name")
    fetching.add_argument("--force", action="store_true", help="fetch although the cache has it")
    finding = commands.add_parser("path", help="print the path of a cached weight set")
    finding.add_argument("name")
    listing = commands.add_parser("list", help="print every weight set, its size, licence and whether it is cached")
    for command in (fetching, finding, listing):
        command.add_argument("--cache", type=Path, metavar="DIR", help="default: $CONTRAFACT_WEIGHTS_DIR")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        if options.command == "fetch":
            return _fetch(options.names, options.force, options.cache)
        elif options.command == "path":
            print(path(options.name, cache=options.cache))
        else:
            _list(options.cache)
    except WeightsError as error:
        _complain(error)
        return 1
    except KeyboardInterrupt:
        print("weights: interrupted", file=sys.stderr)
        return 130
    return 0


def _interrupt(number: int, frame: object) -> None:
    """A terminated fetch cleans up like an interrupted one."""
    raise KeyboardInterrupt


def _fetch(names: list[str], force: bool, cache: Path | None) -> int:
    """Fetch every set, those after a failure too."""
    status = 0
    for name in names:
        try:
            print(fetch(name, force=force, cache=cache), flush=True)
        except WeightsError as error:
            _complain(error)
            status = 1
    return status


def _complain(error: WeightsError) -> None:
    print(f"weights: error: {error}", file=sys.stderr)


def _list(cache: Path | None) -> None:
    for name, entry in sorted(load_registry().items()):
        try:
            state = str(path(name, cache=cache))
        except WeightsError:
            state = "not cached"
        size = f"{entry.size / 1e6:.1f} MB" if entry.size else "any size"
        print(f"{name}\t{size}\t{entry.licence}\t{state}")


if __name__ == "__main__":
    sys.exit(main())
