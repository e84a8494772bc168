#!/usr/bin/env python3
"""Run one command on this host with the view that L1 would give it: see `scripts/lab --host`.

A mount namespace of the run's own lays temporary folders over /lab and /var/lib/kiln, so the
host's own files stay as they are. Processors, memory and scratch size are the host's.
"""
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile

from job import MISUSED, TIMED_OUT, Fail, Job, argument_parser, say

# Only these exist for this run alone; a copy to anywhere else would change the host.
OWN_FOLDERS = ("/lab", "/var/lib/kiln")

MOUNT_AND_RUN = """
set -e
mount --bind "$1/lab" /lab
mount --bind "$1/state" /var/lib/kiln
cd /lab
exec sh "$1/command"
"""


def place(folder: pathlib.Path, path: str) -> pathlib.Path:
    """Where a file with this path in the lab really is."""
    for own, name in zip(OWN_FOLDERS, ("lab", "state")):
        if path == own or path.startswith(own + "/"):
            return folder / name / path[len(own) :].lstrip("/")
    raise Fail(MISUSED, f"--host copies only under {' and '.join(OWN_FOLDERS)}, not {path}")


def copy(source: str | pathlib.Path, target: str | pathlib.Path) -> None:
    pathlib.Path(target).parent.mkdir(parents=True, exist_ok=True)
    if os.path.isdir(source):
        shutil.copytree(source, target, symlinks=True, dirs_exist_ok=True)
    else:
        shutil.copy2(source, target)


def run(job: Job, timeout: float, folder: pathlib.Path) -> int:
    for name in ("lab/images", "state"):
        (folder / name).mkdir(parents=True)
    for source, target in job.puts:
        copy(source, place(folder, target))
    for path, name in job.images:
        (folder / "lab/images" / name).symlink_to(path)
    (folder / "command").write_text(job.script)
    for own in OWN_FOLDERS:
        os.makedirs(own, exist_ok=True)
    process = subprocess.Popen(
        ["unshare", "--mount", "sh", "-c", MOUNT_AND_RUN, "sh", folder],
        stdin=None if job.interactive else subprocess.DEVNULL,
        stderr=None if job.interactive else subprocess.STDOUT,
        start_new_session=not job.interactive,
    )
    try:
        status = process.wait(timeout)
    except subprocess.TimeoutExpired:
        raise Fail(TIMED_OUT, f"timed out after {timeout:g} s") from None
    finally:
        if not job.interactive:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
    for source, target in job.gets:
        found = place(folder, source)
        if found.exists():
            copy(found, target)
        else:
            say(f"--get: there is no {source}")
    return status if status >= 0 else 128 - status


def main() -> int:
    arguments = argument_parser(__doc__).parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    folder = pathlib.Path(tempfile.mkdtemp(prefix="kiln-lab-"))
    try:
        return run(Job(arguments), arguments.timeout, folder)
    except Fail as fail:
        say(str(fail))
        return fail.status
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
