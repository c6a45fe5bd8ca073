"""A session with named checks. Runs inside gdb."""

import os
import signal
import sys
import threading
import time
import traceback

import gdb


class Failed(Exception):
    """What a check found."""


def expect(condition, what):
    if not condition:
        raise Failed(what)


def run(command):
    """Runs a gdb command and returns what it said, the stub's messages included."""
    return gdb.execute(command, to_string=True)


def refused(command):
    """Runs a gdb command that must fail, and returns how."""
    try:
        said = run(command)
    except gdb.error as error:
        return str(error)
    raise Failed(f"{command} was not refused: {said}")


class Checks:
    """Runs checks one after the other; each is a line of output."""

    #: What tells most of a guest that does not come to where it is awaited.
    STATE = ["info threads", "thread apply all -q -- bt 8", "monitor mask status", "monitor lapic", "monitor stats"]

    def __init__(self, limit):
        """`limit` is in seconds, of each check: then gdb types Ctrl-C, and the guest's state is shown."""
        self.failed = 0
        self._limit = limit

    def check(self, name, act):
        """Runs `act`, which returns a remark."""
        begun = time.monotonic()
        verdict = "PASS"
        stalled = ctrl_c_after(self._limit)
        try:
            remark = act() or ""
        except (Failed, gdb.error, gdb.MemoryError, ValueError, KeyboardInterrupt) as error:
            verdict, remark = "FAIL", f"{type(error).__name__}: {error}"
            self.failed += 1
            where = traceback.extract_tb(sys.exc_info()[2])[-1]
            remark += f" ({os.path.basename(where.filename)}:{where.lineno})"
        except Exception as error:
            verdict, remark = "FAIL", "".join(traceback.format_exception(error))
            self.failed += 1
        finally:
            stalled.cancel()
        print(f"{verdict} {name} ({time.monotonic() - begun:.1f} s): {' '.join(remark.split())}", flush=True)
        if verdict == "FAIL" and time.monotonic() - begun > self._limit:
            self.show_state()
        return verdict == "PASS"

    def show_state(self):
        for command in self.STATE:
            try:
                said = run(command)
            except gdb.error as error:
                said = str(error)
            print(f"--- {command}\n{said}", flush=True)


def ctrl_c_after(seconds):
    """Types Ctrl-C, while the main thread waits for the guest."""
    timer = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGINT))
    timer.daemon = True
    timer.start()
    return timer
