"""Start one program so that it dies with the stack: ``launch.py PARENT SIGNAL USER OVERRIDE PROGRAM ARG…``.

A script of its own, run by ``python -I -S`` in front of every child, because the two things it does must
happen inside the new process before the program starts, and ``preexec_fn`` is not safe in a process with
threads (gRPC's, the event loop's). It replaces itself by PROGRAM, so PROGRAM has the pid that was spawned.

* SIGNAL is what the kernel sends it when the *thread* that spawned it ends, however it ends.
* USER is ``uid:gid`` to become, or ``-``. OVERRIDE ``1`` keeps the one capability that lets this user pass
  folders only root may enter (see ``postgres.py``, the only user of both).
"""

from __future__ import annotations

import ctypes
import os
import sys

PR_SET_PDEATHSIG = 1
PR_SET_KEEPCAPS = 8
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_RAISE = 2
CAP_DAC_OVERRIDE = 1
CAPABILITY_VERSION_3 = 0x20080522

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")


def become(user: str, override: bool) -> None:
    """Drop root for ``uid:gid``, keeping CAP_DAC_OVERRIDE across the coming exec if asked to."""
    uid, gid = map(int, user.split(":"))
    if override:
        _check(_libc.prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0), "keep capabilities")
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    if override:
        header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0)
        bit = 1 << CAP_DAC_OVERRIDE
        # Two words each of effective, permitted, inheritable: no more than this one capability.
        data = (ctypes.c_uint32 * 6)(bit, bit, bit, 0, 0, 0)
        _check(_libc.capset(header, data), "limit capabilities")
        _check(_libc.prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_DAC_OVERRIDE, 0, 0), "pass a capability")


def main() -> None:
    parent, signal, user, override, program, *arguments = sys.argv[1:]
    if user != "-":
        become(user, override == "1")
    # After the change of user, which clears it.
    _check(_libc.prctl(PR_SET_PDEATHSIG, int(signal), 0, 0, 0), "bind to the parent")
    if os.getppid() != int(parent):
        sys.exit("launch: the parent ended before the start")
    os.umask(0o077)
    try:
        os.execvp(program, [program, *arguments])
    except OSError as error:
        sys.exit(f"launch: {program}: {error.strerror}")


if __name__ == "__main__":
    main()
