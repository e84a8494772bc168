#!/usr/bin/env python3
"""Processor time of Kiln's own threads per block request and per packet, on this host's KVM.

Each figure with the jail and the system call filters around the VMM, as always, and without.
A bare-metal guest that polls drives the devices from ring 3, so no guest kernel is in the figures
and any KVM will do. `scripts/bench` calls this. Nothing here passes or fails by a figure.
"""
import argparse
import contextlib
import ctypes
import fcntl
import os
import pathlib
import re
import socket
import struct
import sys
import tempfile

import figures
import probe
from figures import add, say
from vmm import Died, Guest, Kiln

# The same guest under other VMMs, measured once on a two-core machine without hardware KVM.
PEERS = """elsewhere, same guest: CPU outside the vCPU thread per 4 KiB request, one at a time: Firecracker 16 us,
Cloud Hypervisor 33 us, QEMU 47..73 us; per 1514-byte frame in batches of 32: 1.8..2.3 us each;
exec to first serial byte: 3..6, 6..12, 45 CPU ms; memory beyond the guest's, resident/private dirty:
4.1/0.3, 6.6/0.7, 37/15 MiB"""

# Side by side in each sample.
SYSTEMS = ["kiln", "no jail"]
DISK_BYTES = 64 << 20
BLOCKS = 20_000
FRAMES = 64_000
# <linux/if_tun.h>, <linux/if.h>, <linux/sockios.h>
TUNSETIFF, TUNSETVNETHDRSZ = 0x400454CA, 0x400454D8
IFF_TAP, IFF_NO_PI, IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
SIOCSIFFLAGS, IFF_UP = 0x8914, 1
VNET_HEADER = 12
CLONE_NEWNET = 0x40000000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kiln-vmm", required=True)
    parser.add_argument("--bare", type=pathlib.Path, required=True)
    parser.add_argument("--samples", type=int, default=5)
    parser.add_argument("--json", type=pathlib.Path)
    arguments = parser.parse_args()
    Kiln.program = arguments.kiln_vmm
    tap = open_tap()
    with tempfile.NamedTemporaryFile(prefix="kiln-bench-") as disk:
        disk.write(os.urandom(1 << 20) * (DISK_BYTES >> 20))
        disk.flush()
        requests, packets = per_request(arguments, pathlib.Path(disk.name)), per_packet(arguments, tap)
        samples: figures.Samples = {}
        for sample in range(arguments.samples):
            for name, measure in {"start": starts(arguments), **requests, **packets}.items():
                say(f"sample {sample + 1} of {arguments.samples}: {name}")
                for system in SYSTEMS:
                    Kiln.jailed = system == "kiln"
                    for metric, value in measure().items():
                        add(samples, metric, system, value)
    title = f"native, bare-metal guest ({arguments.samples} samples: median [least..most])"
    print(figures.table(title, samples, SYSTEMS) + "\n\n" + PEERS)
    figures.save(arguments.json, samples)


def starts(arguments: argparse.Namespace):
    def measure() -> dict[str, float]:
        with contextlib.closing(Kiln(Guest(arguments.bare, "test=hello"))) as machine:
            machine.wait_for_output()
            machine.freeze()
            found = probe.memory_kib(machine.pid, machine.guest.memory_mib)
            if "KILN_BENCH_MEMORY" in os.environ:
                say(f"private dirty KiB by mapping: {found['dirty_by_mapping']}")
            return {
                "exec to first serial byte, ms wall": (machine.first_byte_at or 0) * 1e3,
                "exec to first serial byte, ms CPU": probe.cpu_seconds(machine.pid) * 1e3,
                "resident beyond guest memory, MiB": found["rss"] / 1024,
                "private dirty beyond guest memory, MiB": found["private_dirty"] / 1024,
            }

    return measure


def per_request(arguments: argparse.Namespace, disk: pathlib.Path):
    def work(operation: str, depth: int):
        cmdline = f"{clock()} test=bench-blk op={operation} depth={depth} count={BLOCKS}"
        guest = Guest(arguments.bare, cmdline, disk=disk)
        return lambda: {f"us per 4 KiB {operation}, {depth} in flight": outside(guest) / BLOCKS * 1e6}

    return {f"{op}s, {depth} in flight": work(op, depth) for op in ("read", "write") for depth in (1, 32)}


def per_packet(arguments: argparse.Namespace, tap: int | None):
    cmdline = f"{clock()} test=bench-net count={FRAMES}"
    if tap is None:
        guest = Guest(arguments.bare, cmdline, nic=True)
        where = "dropped by the VMM, there being no tap"
    else:
        guest = Guest(arguments.bare, cmdline, tap=tap)
        where = "to a tap"
    return {"packets": lambda: {f"us per 1514-byte frame in batches of 32, {where}": outside(guest) / FRAMES * 1e6}}


def clock() -> str:
    """Tells the guest its counter's frequency: without hardware KVM it cannot ask for it in ring 3."""
    text = pathlib.Path("/proc/cpuinfo").read_text()
    frequency = re.search(r"^cpu MHz\s*:\s*([\d.]+)", text, re.MULTILINE)
    return f"tsc-khz={int(float(frequency[1]) * 1000)}" if frequency else ""


def outside(guest: Guest) -> float:
    """Seconds outside the vCPU thread between the guest's `begin` and `end`."""
    with contextlib.closing(Kiln(guest)) as machine:
        machine.wait_for("  begin")
        before = probe.outside_vcpus(machine.pid)
        machine.wait_for("  end")
        return probe.outside_vcpus(machine.pid) - before


def open_tap() -> int | None:
    """A tap in a network namespace of this process alone; None where that is not allowed."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET) != 0:
        say(f"no network namespace ({os.strerror(ctypes.get_errno())}): frames go nowhere")
        return None
    try:
        tap = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        request = struct.pack("16sH22x", b"bench0", IFF_TAP | IFF_NO_PI | IFF_VNET_HDR)
        fcntl.ioctl(tap, TUNSETIFF, request)
        fcntl.ioctl(tap, TUNSETVNETHDRSZ, struct.pack("i", VNET_HEADER))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
            fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack("16sH22x", b"bench0", IFF_UP))
        return tap
    except OSError as error:
        say(f"no tap ({error}): frames go nowhere")
        return None


if __name__ == "__main__":
    try:
        main()
    except Died as died:
        sys.exit(f"bench: {died}")
