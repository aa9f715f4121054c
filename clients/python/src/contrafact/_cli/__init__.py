"""The ``contrafact`` command.

Modules here import the client only inside functions, so that help and completion answer at once.
"""

from __future__ import annotations

import os


def main() -> None:
    """Run the command line and exit."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # expected errors are one line, and it is ours
    from contrafact._cli.app import build
    from contrafact._cli.running import reporting_errors

    command = build()
    with reporting_errors():
        command(prog_name="contrafact")
