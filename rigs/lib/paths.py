"""Where things are, and the lock of the cache."""

import contextlib
import fcntl
import os
import pathlib

RIGS = pathlib.Path(__file__).resolve().parent.parent
WORKSPACE = RIGS.parent
#: Everything that can be fetched or built again. Git ignores it.
CACHE = pathlib.Path(os.environ.get("RIGS_CACHE", WORKSPACE / "target" / "rigs"))


@contextlib.contextmanager
def locked(name):
    """One process at a time in the named part of the cache; the kernel drops the lock with us."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with open(CACHE / f"{name}.lock", "w", encoding="ascii") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
