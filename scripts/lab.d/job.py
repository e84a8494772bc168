"""What a run of the lab is asked to do: its options, and the command as a shell script."""
import argparse
import os
import pathlib
import shlex
import sys

MISUSED = 2
TIMED_OUT = 124
DIED = 125


class Fail(Exception):
    """The run ends here with this status and message."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


def say(text: str) -> None:
    print(f"lab: {text}", file=sys.stderr, flush=True)


def argument_parser(description: str) -> argparse.ArgumentParser:
    """The options of `lab run`; `scripts/lab --help` explains them."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--smp", type=int, default=2)
    parser.add_argument("--mem", type=int, default=6144)
    parser.add_argument("--timeout", type=float, default=900)
    parser.add_argument("--scratch", type=int, default=8192)
    parser.add_argument("--put", action="append", default=[])
    parser.add_argument("--get", action="append", default=[])
    parser.add_argument("--image", action="append", default=[])
    parser.add_argument("--env", action="append", default=[])
    parser.add_argument("--qemu-log", type=pathlib.Path)
    parser.add_argument("--interactive", action="store_true")
    parser.add_argument("command", nargs="+")
    return parser


class Job:
    """The command, its environment, and the files and images it wants."""

    def __init__(self, arguments: argparse.Namespace):
        self.puts = [_put(item) for item in arguments.put]
        self.gets = [_get(item) for item in arguments.get]
        self.images = [(os.path.realpath(path), os.path.basename(path)) for path in arguments.image]
        for path, _ in self.images:
            if not os.path.isfile(path):
                raise Fail(MISUSED, f"--image: no such file: {path}")
        self.interactive = arguments.interactive
        lines = []
        for item in arguments.env:
            name, sep, value = item.partition("=")
            if not sep or not name.isidentifier():
                raise Fail(MISUSED, f"--env wants NAME=VALUE, not {item}")
            lines.append(f"export {name}={shlex.quote(value)}")
        if self.interactive:
            columns, rows = os.get_terminal_size(sys.stdin.fileno())
            lines.append(f"export TERM={shlex.quote(os.environ.get('TERM', 'linux'))}")
            lines.append(f"stty rows {rows} cols {columns}")
        lines.append(f"exec {shlex.join(arguments.command)}")
        self.script = "\n".join(lines) + "\n"


def _put(item: str) -> tuple[str, str]:
    """SRC[:DST] as (path on the host, absolute path in the lab)."""
    source, _, target = item.partition(":")
    if not os.path.exists(source):
        raise Fail(MISUSED, f"--put: no such file: {source}")
    # A link named on the command line stands for its file, under the link's own name.
    name = os.path.basename(os.path.abspath(source))
    target = os.path.join("/lab", target or name)
    if target.endswith("/"):
        target += name
    return os.path.realpath(source), os.path.normpath(target)


def _get(item: str) -> tuple[str, str]:
    """SRC:DST as (absolute path in the lab, path on the host)."""
    source, sep, target = item.partition(":")
    if not sep or not source or not target:
        raise Fail(MISUSED, f"--get wants SRC:DST, not {item}")
    source = os.path.normpath(os.path.join("/lab", source))
    if os.path.isdir(target) or target.endswith("/"):
        target = os.path.join(target, os.path.basename(source))
    return source, os.path.abspath(target)
