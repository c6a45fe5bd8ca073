"""Our own programs and tests, built statically."""

import json
import os
import pathlib
import subprocess

from .errors import RigError
from .paths import CACHE, WORKSPACE

TARGET = "x86_64-unknown-linux-gnu"
#: The pipeline's jobs have the same, so neither builds what the other has built.
ENVIRONMENT = {
    # There is no C library in a rig. With --target this is not for build scripts.
    "RUSTFLAGS": "-C target-feature=+crt-static",
    # An emulated CPU feels the difference, and has to load what there is.
    "CARGO_PROFILE_DEV_OPT_LEVEL": "1",
    "CARGO_PROFILE_DEV_DEBUG": "line-tables-only",
}
CRATES = ["vcpu-caps", "intr-controller", "debug-stub", "vmm-reference"]
#: What was built last.
LIST = CACHE / "programs.json"


def build(crates=None):
    """Builds the tests and programs of all crates, or of these. Returns them by name:
    `debug-stub:kvm_step` for a test, `debug-stub:lib` for the tests in the library itself,
    `vmm-reference` for the program.

    With RIGS_BUILT=1 it returns what was built last for all, without asking cargo: in the pipeline,
    which has just built it, cargo would wait for other jobs."""
    if os.environ.get("RIGS_BUILT") == "1":
        try:
            return {name: pathlib.Path(path) for name, path in json.loads(LIST.read_text()).items()}
        except FileNotFoundError as error:
            raise RigError("RIGS_BUILT is 1, and nothing was built: run rigs/matrix --prepare") from error
    found = {}
    for crate in crates or CRATES:
        found |= _build(crate)
    if not crates:
        CACHE.mkdir(parents=True, exist_ok=True)
        part = LIST.with_suffix(f".{os.getpid()}")
        part.write_text(json.dumps({name: str(path) for name, path in found.items()}), encoding="utf-8")
        part.rename(LIST)
    return found


def _build(crate):
    # One by one, as the pipeline tests them: together they would have other features.
    command = ["cargo", "test", "--no-run", "--target", TARGET, "--all-features", "-p", crate]
    command += ["--lib", "--bins", "--tests", "--message-format=json"]
    done = subprocess.run(
        command,
        cwd=WORKSPACE,
        env={**os.environ, **ENVIRONMENT},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    found = {}
    for line in done.stdout.splitlines():
        message = json.loads(line)
        if message.get("reason") == "compiler-message":
            print(message["message"].get("rendered") or "", end="", flush=True)
        if message.get("reason") != "compiler-artifact" or not message.get("executable"):
            continue
        kinds, name = message["target"]["kind"], message["target"]["name"]
        crate = pathlib.Path(message["manifest_path"]).parent.name
        path = pathlib.Path(message["executable"])
        if "example" in kinds:
            found[f"{crate}:example:{name}"] = path
        elif not message["profile"]["test"]:
            found[name] = path
        elif "lib" in kinds:
            found[f"{crate}:lib"] = path
        elif "test" in kinds:
            found[f"{crate}:{name}"] = path
    if done.returncode:
        raise RigError(f"cargo could not build the tests of {crate}")
    return found


def find(binary):
    """A path as it is; one of our names built first. Returns it, and what it runs itself."""
    path = pathlib.Path(binary)
    if path.is_file():
        return path.resolve(), []
    if "/" in binary:
        raise RigError(f"{binary} does not exist")
    crate = binary.split(":")[0]
    programs = build([crate] if crate in CRATES else None)
    if binary not in programs:
        raise RigError(f"{binary} is neither a file nor one of:\n  " + "\n  ".join(sorted(programs)))
    # The tests of a program run it, by the path at which cargo has put it.
    return programs[binary], [programs[crate]] if crate != binary and crate in programs else []
