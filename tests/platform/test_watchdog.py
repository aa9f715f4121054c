"""The watchdog, in processes of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROGRAM = """
import asyncio, sys, threading, time
from servers.platform.watchdog import Watchdog

def innocent():
    threading.Event().wait()

def blocks_the_loop():
    time.sleep(60)

async def main(seconds, stuck):
    threading.Thread(target=innocent, daemon=True).start()
    async with Watchdog(seconds):
        await asyncio.sleep(3 * seconds)
        if stuck:
            blocks_the_loop()
    time.sleep(2 * seconds)  # nobody watches any more
    print("ended well")

asyncio.run(main(float(sys.argv[1]), sys.argv[2] == "stuck"))
"""


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the program to its end."""
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments],
        capture_output=True,
        text=True,
        timeout=58,  # less than it would be stuck
        check=False,
        cwd=Path(__file__).resolve().parents[2],
    )


def test_a_stuck_loop_ends_its_process_and_says_where_it_was() -> None:
    ended = run("2", "stuck")
    assert ended.returncode == 1
    assert "in blocks_the_loop" in ended.stderr
    assert "in innocent" in ended.stderr  # all threads
    assert "ended well" not in ended.stdout


def test_a_loop_that_runs_is_left_alone() -> None:
    ended = run("2", "well")
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "ended well\n", "")


def test_none_watches_when_it_is_off() -> None:
    assert run("0", "well").returncode == 0
