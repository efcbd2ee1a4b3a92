"""Another kernel as a process of this machine, for what this machine's own lacks: User-Mode Linux.

It sees this machine's files, read-only, has no network but its own, and ends with the command it was given.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import tempfile
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

KERNEL = "linux.uml"
MODULES = Path("/usr/lib/uml/modules")
_BOOT_SECONDS = 60
_REGISTERS = b"ptrace set fp regs failed"
_LOADED = ("sch_netem", "sch_tbf", "sch_ingress", "act_mirred", "cls_matchall", "veth", "bridge", "tun", "tcp_bbr")


def why_not() -> str | None:
    """The reason why none can be started here, or None."""
    for program in (KERNEL, "modprobe", "ip", "tc"):
        if shutil.which(program) is None:
            return f"{program} is missing: make test-deps"
    if not MODULES.is_dir():
        return f"{MODULES} is missing: make test-deps"
    with tempfile.TemporaryDirectory(prefix="peat-other-kernel-") as folder:
        if _REGISTERS in _boot("/bin/true", Path(folder), "64M", _BOOT_SECONDS):
            return f"it cannot run a process on this processor, whose registers it does not know: {_REGISTERS.decode()}"
    return None


def run(
    words: Sequence[str], folder: Path, where: Path, seconds: float, environment: Mapping[str, str]
) -> tuple[int, str]:
    """Run a command as root in another kernel: its exit code and output.

    `folder` is for the kernel's own files; `where` is the working directory. Raises AssertionError when the kernel did
    not get as far, subprocess.TimeoutExpired after so many seconds.
    """
    modules, out = folder / "modules" / "lib", folder / "out"
    modules.mkdir(parents=True)
    out.mkdir()
    (modules / "modules").symlink_to(MODULES)
    exports = {"PATH": os.environ["PATH"], "HOME": "/run", "TMPDIR": "/run/tmp", "PYTHONDONTWRITEBYTECODE": "1"}
    lines = [f"export {name}={shlex.quote(value)}" for name, value in {**exports, **environment}.items()]
    script = f"""\
        mount -t proc proc /proc
        mount -t sysfs sys /sys
        mount -t tmpfs tmpfs /run
        mkdir -p /run/tmp /run/out
        mount -t hostfs -o {out} none /run/out
        ip link set lo up
        for module in {" ".join(_LOADED)}; do modprobe -d {modules.parent} $module; done
        cd {shlex.quote(str(where))}
        {shlex.join(words)} > /run/out/log 2>&1
        echo $? > /run/out/code
        sync
        echo o > /proc/sysrq-trigger
        sleep 60
    """
    init = folder / "init"
    init.write_text("\n".join(["#!/bin/sh", *lines, textwrap.dedent(script)]))
    init.chmod(0o755)
    console = _boot(init, folder, "1G", seconds)
    log = (out / "log").read_text() if (out / "log").exists() else ""
    assert (out / "code").exists(), f"{log}\n{console.decode(errors='replace')[-4000:]}"
    return int((out / "code").read_text()), log


def _boot(init: str | Path, folder: Path, memory: str, seconds: float) -> bytes:
    """Start the kernel with `init` as its first process: what it said until it ended. Raises TimeoutExpired.

    Its memory is a file in `folder`. It runs before all others, where that is allowed: the network tests measure time.
    """
    arguments = [f"mem={memory}", "rootfstype=hostfs", "rootflags=/", "ro", f"init={init}", "quiet", "con=null"]
    kernel = subprocess.Popen(
        ["nice", "-n", "-20", KERNEL, *arguments, "con0=fd:0,fd:1", f"uml_dir={folder}"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "TMPDIR": str(folder)},
        start_new_session=True,
    )
    try:
        console, _ = kernel.communicate(timeout=seconds)
    finally:
        # Every process in there is one out here, of the same group.
        subprocess.run(["kill", "-KILL", "--", f"-{kernel.pid}"], check=False, capture_output=True)
        kernel.wait()
    return console
