"""Starts one VMM process and reads what its guest prints: Kiln's and, beside it, QEMU's."""
import array
import contextlib
import dataclasses
import json
import os
import pathlib
import select
import signal
import socket
import struct
import subprocess
import tempfile
import time

QEMU = "qemu-system-x86_64"


@dataclasses.dataclass
class Guest:
    """What to start. `tap` is an open queue of a tap device."""

    kernel: pathlib.Path
    cmdline: str
    initrd: pathlib.Path | None = None
    disk: pathlib.Path | None = None
    nic: bool = False
    tap: int | None = None
    memory_mib: int = 256


class Died(Exception):
    """The VMM ended before its guest said what was waited for."""


class Vmm:
    """A VMM process and the text of its guest's serial port."""

    def __init__(self, guest: Guest):
        self.guest = guest
        self.text = ""
        self.first_byte_at: float | None = None
        self.serial, self.serial_end = os.pipe2(os.O_CLOEXEC)
        self.errors = tempfile.TemporaryFile()
        self.started_at = time.monotonic()
        self.process = self.start()
        os.close(self.serial_end)

    def start(self) -> subprocess.Popen:
        raise NotImplementedError

    @property
    def pid(self) -> int:
        return self.process.pid

    def seconds(self) -> float:
        """Since exec."""
        return time.monotonic() - self.started_at

    def wait_for(self, marker: str, timeout: float = 600) -> str:
        """The rest of the line that begins with `marker`, once the guest has printed all of it."""
        deadline = time.monotonic() + timeout
        while True:
            line = self.find(marker)
            if line is not None:
                return line
            self.read(deadline - time.monotonic(), marker)

    def wait_for_output(self, timeout: float = 600) -> None:
        """Until the guest has printed a first byte."""
        deadline = time.monotonic() + timeout
        while not self.text:
            self.read(deadline - time.monotonic(), "anything")

    def find(self, marker: str) -> str | None:
        at = self.text.find(marker)
        end = self.text.find("\n", at)
        return self.text[at + len(marker) : end].strip() if at >= 0 and end >= 0 else None

    def read(self, timeout: float, awaited: str) -> None:
        ready, _, _ = select.select([self.serial], [], [], max(timeout, 0))
        data = os.read(self.serial, 65536) if ready else b""
        if not data:
            reason = "ended" if ready else "is silent"
            if ready:
                # It says why after it has let go of the serial port.
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.process.wait(10)
            raise Died(f"{type(self).__name__} {reason} before {awaited!r}: {self.text[-2000:]} {self.complaints()}")
        if self.first_byte_at is None:
            self.first_byte_at = self.seconds()
        self.text += data.decode("utf-8", "replace")

    def complaints(self) -> str:
        self.errors.seek(0)
        return self.errors.read().decode("utf-8", "replace")

    def freeze(self) -> None:
        """Stops all threads, so that counters can be read as they were at this moment."""
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.serial)
        self.errors.close()


class Kiln(Vmm):
    """`kiln-vmm`, driven over its control socket as the control plane does."""

    program = "kiln-vmm"
    # As the control plane starts it. Without, it has neither a jail nor filters: to see what they cost.
    jailed = True
    # One of the ids that instances get.
    JAIL_UID = 0x7000_0000

    def start(self) -> subprocess.Popen:
        folder = tempfile.TemporaryDirectory()
        path = f"{folder.name}/control"
        with socket.socket(socket.AF_UNIX) as listener, folder:
            listener.bind(path)
            listener.listen()
            # Connected before the program runs: the kernel queues both the connection and the frame.
            self.control = socket.socket(socket.AF_UNIX)
            self.control.connect(path)
            self.started_at = time.monotonic()
            jail = ["--jail", str(self.JAIL_UID if os.geteuid() == 0 else os.geteuid()), "--largest-file", str(1 << 40)]
            process = subprocess.Popen(
                [self.program, "--control-fd", str(listener.fileno()), *(jail if self.jailed else [])],
                pass_fds=[listener.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self.errors,
            )
        self.send_start()
        return process

    def send_start(self) -> None:
        descriptors: list[int] = []

        def hand_over(path: pathlib.Path | str, flags: int) -> int:
            descriptors.append(os.open(path, flags | os.O_CLOEXEC))
            return len(descriptors) - 1

        guest = self.guest
        spec = {
            "instance_id": "i-0123456789abcdef0",
            "kvm": hand_over("/dev/kvm", os.O_RDWR),
            "vcpus": 1,
            "cpu_template": "host",
            "memory": {"size_mib": guest.memory_mib, "hugepages": False},
            "boot": {
                "from": "files",
                "kernel": hand_over(guest.kernel, os.O_RDONLY),
                "initrd": hand_over(guest.initrd, os.O_RDONLY) if guest.initrd else None,
                "cmdline": guest.cmdline,
            },
            "disks": [],
            "nics": [],
            "smbios": {
                "manufacturer": "Amazon EC2",
                "product_name": "t3.micro",
                "uuid": "ec2e1916-9099-7caf-fd21-012345abcdef",
                "serial": "ec2e1916-9099-7caf-fd21-012345abcdef",
                "board_asset_tag": "i-0123456789abcdef0",
                "chassis_asset_tag": "Amazon EC2",
                "bios_version": "1.0",
                "bios_date": "01/01/2025",
            },
            "metadata": {},
        }
        if guest.disk:
            file = hand_over(guest.disk, os.O_RDWR)
            spec["disks"] = [
                {"serial": "vol0", "layers": [{"file": file, "format": "raw"}], "read_only": False, "queues": 1}
            ]
        if guest.nic or guest.tap is not None:
            queues = []
            if guest.tap is not None:
                descriptors.append(os.dup(guest.tap))
                queues = [len(descriptors) - 1]
            spec["nics"] = [nic(queues)]
        descriptors.append(os.dup(self.serial_end))
        spec["console"] = {"log": len(descriptors) - 1, "log_limit_bytes": 1 << 30, "to_starter": False}
        body = json.dumps({"id": 1, "command": {"command": "start", **spec}}).encode()
        frame = struct.pack("<I", len(body)) + body
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))]
        sent = self.control.sendmsg([frame], rights)
        self.control.sendall(frame[sent:])
        for descriptor in descriptors:
            os.close(descriptor)

    def close(self) -> None:
        super().close()
        self.control.close()


def nic(queues: list[int]) -> dict:
    return {
        "mac": "02:00:00:00:00:10",
        "tap_queues": queues,
        "mtu": 1500,
        "link_local": {
            "private_ipv4": "10.0.1.10",
            "prefix_len": 24,
            "router": "10.0.1.1",
            "router_mac": "02:00:00:00:00:01",
            "dns": ["10.0.0.2"],
            "resolver": "10.0.0.2",
            "host_name": "ip-10-0-1-10",
            "domain_name": "ec2.internal",
        },
    }


class Qemu(Vmm):
    """QEMU's smallest machine, with the same devices on its own transport."""

    def start(self) -> subprocess.Popen:
        guest = self.guest
        command = [
            *(QEMU, "-M", "microvm", "-accel", "kvm", "-cpu", "host", "-smp", "1", "-m", str(guest.memory_mib)),
            *("-name", "bench,debug-threads=on", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
            *("-serial", "stdio", "-kernel", str(guest.kernel), "-append", guest.cmdline),
            *("-device", "virtio-rng-device"),
        ]
        if guest.initrd:
            command += ["-initrd", str(guest.initrd)]
        if guest.disk:
            command += ["-drive", f"if=none,id=disk,file={guest.disk},format=raw,cache=writeback"]
            command += ["-device", "virtio-blk-device,drive=disk"]
        self.started_at = time.monotonic()
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=self.serial_end, stderr=self.errors, close_fds=True
        )
