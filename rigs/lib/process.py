"""Processes that never outlive us."""

import ctypes
import os
import pathlib
import signal
import subprocess
import sys

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36

_prctl = ctypes.CDLL(None, use_errno=True).prctl


def adopt_orphans():
    """Makes us the parent of what our children leave behind, so it can be found and ended.
    SIGTERM and SIGHUP end us as Ctrl-C does: through the `finally` clauses."""
    _prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)

    def end(number, _frame):
        sys.exit(128 + number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, end)


def start(command, **options):
    """Starts a process in a session of its own, which dies if we are killed."""
    parent = os.getpid()

    def die_with_parent():
        _prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)

    return subprocess.Popen(command, start_new_session=True, preexec_fn=die_with_parent, **options)


def end(child):
    """Ends the process and all that descends from it; orphans included, which are ours."""
    if child.poll() is None:
        for pid in [*_descendants(child.pid), child.pid]:
            _kill(pid)
        child.wait()
    # What it had left behind came to us, and what that leaves comes too.
    while orphans := _children(os.getpid()):
        for pid in orphans:
            _kill(pid)
            try:
                os.waitpid(pid, 0)
            except ChildProcessError:
                pass


def _kill(pid):
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def _children(pid):
    found = []
    for task in pathlib.Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found += [int(child) for child in task.read_text(encoding="ascii").split()]
        except OSError:
            pass
    return found


def _descendants(pid):
    found = []
    for child in _children(pid):
        found += [*_descendants(child), child]
    return found
