#!/usr/bin/env python3
"""Kiln beside QEMU's microvm: the same guests, started in turn, counted by the kernel.

Runs where KVM runs stock kernels: in the lab, or on a host with hardware-backed KVM. `scripts/bench`
calls this. Nothing here passes or fails by a figure.
"""
import argparse
import collections
import contextlib
import os
import pathlib
import sys
import time

import figures
import probe
import trace
from figures import add, say
from vmm import Died, Guest, Kiln, Qemu, Vmm

CMDLINE = "console=ttyS0 reboot=t panic=-1 quiet"
VMMS: dict[str, type[Vmm]] = {"kiln": Kiln, "qemu": Qemu}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kiln-vmm", required=True)
    parser.add_argument("--kernels", type=pathlib.Path, nargs="+", required=True)
    parser.add_argument("--initrd", type=pathlib.Path, required=True)
    parser.add_argument("--bare", type=pathlib.Path, required=True, help="the bare-metal guest")
    parser.add_argument("--disk", type=pathlib.Path, required=True)
    parser.add_argument("--samples", type=int, default=5)
    parser.add_argument("--json", type=pathlib.Path)
    parser.add_argument("--only", choices=list(VMMS), help="one VMM alone")
    parser.add_argument("--trace", action="store_true", help="say what the exits were, in one more boot each")
    arguments = parser.parse_args()
    Kiln.program = arguments.kiln_vmm
    vmms = [arguments.only] if arguments.only else list(VMMS)
    with open(arguments.disk, "wb") as disk:
        disk.truncate(8 << 20)
    results, texts = {}, []

    guests = [(kernel.name, boots(Guest(kernel, CMDLINE, arguments.initrd, arguments.disk))) for kernel in arguments.kernels]
    guests.insert(0, ("bare", bare(Guest(arguments.bare, "test=hello", disk=arguments.disk))))
    titles = {"bare": "bare-metal guest: from exec to the first serial byte"}
    for name, measure in guests:
        samples: figures.Samples = {}
        for sample in range(arguments.samples):
            for vmm in vmms:
                say(f"{name}: sample {sample + 1} of {arguments.samples}, {vmm}")
                for metric, value in measure(VMMS[vmm]).items():
                    add(samples, metric, vmm, value)
        title = titles.get(name, f"{name}, busybox initramfs, 1 vCPU, 256 MiB: from exec to init's first line")
        texts.append(figures.table(f"{title} ({arguments.samples} samples: median [least..most])", samples, vmms))
        results[name] = samples
        print(texts[-1] + "\n", flush=True)
    if arguments.trace:
        guest = Guest(arguments.kernels[0], CMDLINE, arguments.initrd, arguments.disk)
        for what, counts in traced(guest, vmms).items():
            print(figures.histogram(f"{what}, exec to init, one traced boot of {guest.kernel.name}", counts) + "\n", flush=True)
            results[what] = counts
    figures.save(arguments.json, results)


def bare(guest: Guest):
    """Start-up alone: the guest prints as soon as it runs."""

    def measure(vmm: type[Vmm]) -> dict[str, float]:
        with contextlib.closing(vmm(guest)) as machine:
            machine.wait_for_output()
            machine.freeze()
            return {
                "wall to first byte, ms": (machine.first_byte_at or 0) * 1e3,
                "CPU to first byte, ms": probe.cpu_seconds(machine.pid) * 1e3,
                **memory(machine),
            }

    return measure


def boots(guest: Guest):
    """A Linux kernel to its init, then interrupts of its disk."""

    def measure(vmm: type[Vmm]) -> dict[str, float]:
        with contextlib.closing(vmm(guest)) as machine:
            machine.wait_for("bench: init")
            machine.freeze()
            counters = probe.kvm_counters(machine.pid)
            measured = {
                "wall to init, ms": machine.seconds() * 1e3,
                "CPU to init, ms": probe.cpu_seconds(machine.pid) * 1e3,
                "CPU outside the vCPU thread, ms": probe.outside_vcpus(machine.pid) * 1e3,
                "KVM exits": counters.get("exits", 0),
                # These follow how long the boot takes: ticks of this machine and of the guest.
                "  of these host interrupts and interrupt windows": counters.get("irq_exits", 0)
                + counters.get("irq_window_exits", 0),
                "  of these port I/O": counters.get("io_exits", 0),
                "MMIO exits to user space": counters.get("mmio_exits", 0),
                **memory(machine),
            }
            machine.thaw()
            measured["MMIO exits per disk interrupt"] = exits_per_interrupt(machine)
            return measured

    return measure


def memory(machine: Vmm) -> dict[str, float]:
    found = probe.memory_kib(machine.pid, machine.guest.memory_mib)
    if "KILN_BENCH_MEMORY" in os.environ:
        say(f"private dirty KiB by mapping: {found['dirty_by_mapping']}")
    return {
        "resident beyond guest memory, MiB": found["rss"] / 1024,
        "private dirty beyond guest memory, MiB": found["private_dirty"] / 1024,
    }


def exits_per_interrupt(machine: Vmm) -> float:
    """MMIO exits to user space while the guest reads its disk, per interrupt of the disk. A doorbell
    bound to an event descriptor is no such exit."""
    before = int(machine.wait_for("bench: reading at").split()[0])
    exits_before = probe.kvm_counters(machine.pid).get("mmio_exits", 0)
    after = int(machine.wait_for("bench: read at").split()[0])
    exits = probe.kvm_counters(machine.pid).get("mmio_exits", 0) - exits_before
    return exits / max(after - before, 1)


def traced(guest: Guest, vmms: list[str]) -> dict[str, dict[str, dict[str, int]]]:
    """What the exits were. Apart from the samples, because tracing costs time."""
    found: dict[str, dict[str, dict[str, int]]] = collections.defaultdict(dict)
    for vmm in vmms:
        say(f"{guest.kernel.name}: tracing {vmm}")
        with trace.exits() as counts, contextlib.closing(VMMS[vmm](guest)) as machine:
            machine.wait_for("bench: init")
            machine.freeze()
            for what, by_reason in counts().items():
                found[what][vmm] = by_reason
    return found


if __name__ == "__main__":
    began = time.monotonic()
    try:
        main()
    except Died as died:
        sys.exit(f"bench: {died}")
    say(f"done in {time.monotonic() - began:.0f} s")
