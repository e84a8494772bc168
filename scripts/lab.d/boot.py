#!/usr/bin/env python3
"""Boot L1 once, run one command in it, and carry its output, files and exit status back.

`scripts/lab` calls this with the artefacts it has built; people call `scripts/lab`. L1 reports
over three virtio-serial ports (see l1-init): control lines, the raw output of the command, and
a tar of the files asked for. Exit status: that of the command; 124 after the timeout; 125 when
L1 ended or could not start without reporting one.
"""
import argparse
import contextlib
import ctypes
import io
import os
import pathlib
import selectors
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import termios
import threading
import time
import tty

from job import DIED, TIMED_OUT, Fail, Job, argument_parser, say

LOGS_KEPT = 20
# Seconds an L1 may take to start; it takes about ten.
UP_LIMIT = 180
# A disk is a whole number of sectors; the tar file is padded to this.
JOB_DISK_ALIGN = 1 << 20


def parse_arguments() -> argparse.Namespace:
    parser = argument_parser(__doc__)
    parser.add_argument("--cache", type=pathlib.Path, required=True)
    parser.add_argument("--qemu", required=True, help="the QEMU command, quoted for a shell")
    parser.add_argument("--kernel", required=True)
    parser.add_argument("--initramfs", required=True)
    parser.add_argument("--root", required=True)
    return parser.parse_args()


def new_log_directory(cache: pathlib.Path) -> pathlib.Path:
    """A directory for this run's logs; the oldest of earlier runs make room for it."""
    logs = cache / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    for old in sorted(logs.iterdir())[: -LOGS_KEPT + 1]:
        shutil.rmtree(old, ignore_errors=True)
    path = logs / time.strftime(f"%Y%m%d-%H%M%S-{os.getpid()}")
    path.mkdir()
    return path


def new_run_directory(cache: pathlib.Path) -> pathlib.Path:
    """A directory for sockets and disks. Those of runs that were killed are removed here."""
    runs = cache / "run"
    runs.mkdir(parents=True, exist_ok=True)
    for old in runs.iterdir():
        pid = old.name.split("-")[0]
        if not pathlib.Path("/proc", pid).exists():
            shutil.rmtree(old, ignore_errors=True)
    return pathlib.Path(tempfile.mkdtemp(prefix=f"{os.getpid()}-", dir=runs))


def write_job_disk(job: Job, path: pathlib.Path) -> None:
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for source, target in job.puts:
            tar.add(source, target.lstrip("/"), filter=owned_by_root)
        add_text(tar, "command", job.script)
        add_text(tar, "get", "".join(f"{source}\n" for source, _ in job.gets))
        add_text(tar, "images", "".join(f"image{n} {name}\n" for n, (_, name) in enumerate(job.images)))
        if job.interactive:
            add_text(tar, "interactive", "")
    size = path.stat().st_size
    os.truncate(path, -(-size // JOB_DISK_ALIGN) * JOB_DISK_ALIGN)


def add_text(tar: tarfile.TarFile, name: str, text: str) -> None:
    data = text.encode()
    member = tarfile.TarInfo(f"run/lab/{name}")
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def receive_files(job: Job, stream: socket.socket) -> None:
    """Unpacks the tar that L1 sends, each file to the place that its --get names."""
    with stream.makefile("rb") as file, tarfile.open(fileobj=file, mode="r|") as tar:
        for member in tar:
            name = "/" + member.name.lstrip("/")
            for source, target in job.gets:
                if name == source or name.startswith(source + "/"):
                    member.name = target + name[len(source) :]
                    tar.extract(member, "/", filter="fully_trusted")
                    break


def owned_by_root(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = "root"
    return member


def make_scratch(path: pathlib.Path, mebibytes: int) -> None:
    with open(path, "wb") as file:
        file.truncate(mebibytes << 20)
    features = "lazy_itable_init=1,lazy_journal_init=1,nodiscard"
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-m", "0", "-J", "size=32", "-L", "scratch", "-E", features, path], check=True)


def disk(serial: str, path: os.PathLike | str, options: str) -> list[str]:
    quoted = str(path).replace(",", ",,")
    return [
        *("-drive", f"if=none,id={serial},file={quoted},format=raw,{options}"),
        *("-device", f"virtio-blk-pci,drive={serial},serial={serial}"),
    ]


def qemu_command(arguments: argparse.Namespace, job: Job, run: pathlib.Path, logs: pathlib.Path, ports: list[str]) -> list[str]:
    command = [
        *shlex.split(arguments.qemu),
        *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        *("-machine", "q35", "-cpu", "max,+svm", "-accel", "tcg,thread=multi"),
        # One more than the job gets: see l1-init.
        *("-smp", str(arguments.smp + 1), "-m", str(arguments.mem)),
        *("-kernel", arguments.kernel, "-initrd", arguments.initramfs),
        *("-append", "console=ttyS0 quiet panic=-1 tsc=reliable"),
        *("-serial", f"file:{logs}/console.log"),
        # Says why a nested guest was reset, which nothing else would.
        *("-d", "cpu_reset,guest_errors", "-D", str(arguments.qemu_log or logs / "registers.log")),
        *disk("root", arguments.root, "readonly=on"),
        *disk("job", run / "job.tar", "readonly=on"),
        *disk("scratch", run / "scratch.raw", "cache=unsafe,discard=unmap"),
        *("-device", "virtio-serial-pci"),
    ]
    for n, (path, _) in enumerate(job.images):
        command += disk(f"image{n}", path, "readonly=on")
    for port in ports:
        command += ["-chardev", f"socket,id={port},path={run}/{port}"]
        if port == "console":
            command += ["-device", "virtconsole,chardev=console"]
        else:
            command += ["-device", f"virtserialport,chardev={port},name=kiln.{port}"]
    return command


def die_with_parent() -> None:
    """In the child before exec: QEMU must not outlive a killed lab, nor take its Ctrl-C."""
    os.setsid()
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


class RawTerminal:
    """The terminal of the user in raw mode, so that L1's shell gets every key."""

    def __enter__(self) -> "RawTerminal":
        self.fd = sys.stdin.fileno() if sys.stdin.isatty() else None
        if self.fd is not None:
            self.saved = termios.tcgetattr(self.fd)
            tty.setraw(self.fd)
        return self

    def __exit__(self, *_: object) -> None:
        if self.fd is not None:
            termios.tcsetattr(self.fd, termios.TCSADRAIN, self.saved)


class Machine:
    """One running L1."""

    def __init__(self, arguments: argparse.Namespace, job: Job, run: pathlib.Path, logs: pathlib.Path):
        self.job = job
        self.logs = logs
        self.timeout = arguments.timeout
        self.started = time.monotonic()
        self.up = False
        self.received = 0
        self.status: tuple[int, int] | None = None
        self.control_buffer = b""
        self.files_thread: threading.Thread | None = None
        self.files_error: Exception | None = None
        ports = ["control", "files", "console" if job.interactive else "output"]
        listeners = {}
        for port in ports:
            listeners[port] = socket.socket(socket.AF_UNIX)
            listeners[port].bind(str(run / port))
            listeners[port].listen(1)
        with open(logs / "qemu.log", "wb") as log:
            self.process = subprocess.Popen(
                qemu_command(arguments, job, run, logs, ports),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=die_with_parent,
            )
        self.output_log = None if job.interactive else open(logs / "output.log", "wb", buffering=0)
        self.sockets = {}
        try:
            for port in ports:
                self.sockets[port] = self._accept(listeners[port])
                listeners[port].close()
        except BaseException:
            self.kill()
            raise

    def _accept(self, listener: socket.socket) -> socket.socket:
        """QEMU connects at once or ends with a message; a listener alone would wait in vain."""
        listener.settimeout(0.1)
        while True:
            try:
                connection, _ = listener.accept()
                connection.setblocking(True)
                return connection
            except TimeoutError:
                if self.process.poll() is not None:
                    raise Fail(DIED, f"QEMU did not start: {tail(self.logs / 'qemu.log', 5)}") from None

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def run(self) -> int:
        selector = selectors.DefaultSelector()
        selector.register(self.sockets["control"], selectors.EVENT_READ, self._on_control)
        stream = self.sockets["console" if self.job.interactive else "output"]
        selector.register(stream, selectors.EVENT_READ, self._on_output)
        if self.job.interactive:
            selector.register(sys.stdin, selectors.EVENT_READ, self._on_key)
        alive = {self.sockets["control"], stream}
        while alive and not self._finished():
            remaining = self.started + self.timeout - time.monotonic()
            if not self.up:
                remaining = min(remaining, self.started + UP_LIMIT - time.monotonic())
            if remaining <= 0 and not self.up:
                raise Fail(DIED, f"L1 did not come up in {UP_LIMIT} s; console, registers and output in {self.logs}")
            if remaining <= 0:
                raise Fail(TIMED_OUT, f"timed out after {self.timeout:g} s; console, registers and output in {self.logs}")
            for key, _ in selector.select(remaining):
                if not key.data(key.fileobj):
                    selector.unregister(key.fileobj)
                    alive.discard(key.fileobj)
        if self.status is None:
            self._explain_death()
        if self.files_thread:
            self.files_thread.join(max(1.0, self.started + self.timeout - time.monotonic()))
            if self.files_thread.is_alive():
                raise Fail(TIMED_OUT, "timed out while files were copied out")
            if self.files_error:
                raise Fail(DIED, f"files could not be copied out: {self.files_error}")
        return self.status[0]

    def _finished(self) -> bool:
        return self.status is not None and self.received >= self.status[1]

    def _on_output(self, stream: socket.socket) -> bool:
        data = stream.recv(65536)
        self.received += len(data)
        if self.output_log:
            self.output_log.write(data)
        view = memoryview(data)
        while view:
            view = view[os.write(sys.stdout.fileno(), view) :]
        return bool(data)

    def _on_key(self, _: object) -> bool:
        data = os.read(sys.stdin.fileno(), 4096)
        if data:
            self.sockets["console"].sendall(data)
        return bool(data)

    def _on_control(self, stream: socket.socket) -> bool:
        data = stream.recv(4096)
        *lines, self.control_buffer = (self.control_buffer + data).split(b"\n")
        for line in lines:
            self._on_message(line.decode(errors="replace"))
        return bool(data)

    def _on_message(self, line: str) -> None:
        word, _, rest = line.partition(" ")
        if word == "up":
            self.up = True
            say(f"L1 is up after {time.monotonic() - self.started:.1f} s" + "\r" * self.job.interactive)
        elif word == "exit":
            status, count = rest.split()
            # A terminal's output is not counted: it has no end that matters.
            self.status = int(status), 0 if self.job.interactive else int(count)
        elif word == "files":
            self.files_thread = threading.Thread(target=self._receive_files, daemon=True)
            self.files_thread.start()
        elif word == "lost":
            raise Fail(DIED, f"the emulator lost a guest ({rest.strip()}); console, registers and output in {self.logs}")
        elif word == "missing":
            say(f"--get: L1 has no {rest}")
        else:
            say(f"L1: {rest}")

    def _receive_files(self) -> None:
        try:
            receive_files(self.job, self.sockets["files"])
        except Exception as error:  # Reported by run(), in the main thread.
            self.files_error = error

    def _explain_death(self) -> None:
        self.process.wait(10)
        console = tail(self.logs / "console.log", 60)
        registers = tail(self.logs / "registers.log", 40)
        messages = tail(self.logs / "qemu.log", 5)
        for title, text in ("console", console), ("registers", registers), ("QEMU", messages):
            if text:
                print(f"---- last lines of {title}\n{text}", file=sys.stderr)
        raise Fail(DIED, f"L1 died without reporting (QEMU status {self.process.returncode}); logs in {self.logs}")


def tail(path: pathlib.Path, lines: int) -> str:
    if not path.exists():
        return ""
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - 65536))
        return "\n".join(file.read().decode(errors="replace").splitlines()[-lines:])


def main() -> int:
    arguments = parse_arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    signal.signal(signal.SIGHUP, lambda *_: sys.exit(128 + signal.SIGHUP))
    run = None
    try:
        job = Job(arguments)
        logs = new_log_directory(arguments.cache)
        run = new_run_directory(arguments.cache)
        write_job_disk(job, run / "job.tar")
        make_scratch(run / "scratch.raw", arguments.scratch)
        with RawTerminal() if job.interactive else contextlib.nullcontext():
            machine = Machine(arguments, job, run, logs)
            try:
                return machine.run()
            finally:
                machine.kill()
    except Fail as fail:
        say(str(fail))
        return fail.status
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:
        return 128 + signal.SIGPIPE
    finally:
        if run:
            shutil.rmtree(run, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
