"""Our own programs and tests, built statically."""

import json
import os
import pathlib
import subprocess

from .errors import RigError
from .paths import WORKSPACE

TARGET = "x86_64-unknown-linux-gnu"
ENVIRONMENT = {
    # There is no C library in a rig. With --target this is not for build scripts.
    "RUSTFLAGS": "-C target-feature=+crt-static",
    # An emulated CPU feels the difference, and has to load what there is.
    "CARGO_PROFILE_DEV_OPT_LEVEL": "1",
    "CARGO_PROFILE_DEV_DEBUG": "line-tables-only",
}
CRATES = ["vcpu-caps", "intr-controller", "debug-stub", "vmm-reference"]


def build():
    """Builds all tests and programs. Returns them by name: `debug-stub:kvm_step` for a test,
    `debug-stub:lib` for the tests in the library itself, `vmm-reference` for the program."""
    command = ["cargo", "test", "--no-run", "--target", TARGET, "--all-features"]
    command += ["--lib", "--bins", "--tests", "--message-format=json"]
    for crate in CRATES:
        command += ["-p", crate]
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
        raise RigError("cargo could not build the tests")
    return found


def find(binary):
    """A path as it is; one of our names built first."""
    path = pathlib.Path(binary)
    if path.is_file():
        return path.resolve()
    if "/" in binary:
        raise RigError(f"{binary} does not exist")
    programs = build()
    if binary not in programs:
        raise RigError(f"{binary} is neither a file nor one of:\n  " + "\n  ".join(sorted(programs)))
    return programs[binary]
