#!/usr/bin/env python3
"""What a guest feels of its neighbours' worst: time of its block requests beside attacks and without.

Everything as `kiln run` sets it up: jail, control group with the shares of the instance type, limits of
disks. One instance reads its disk, one request at a time; the others, of the same type, do their worst
meanwhile. Nothing here passes or fails by a figure.
"""
import argparse
import contextlib
import os
import pathlib
import re
import subprocess
import tempfile

import figures
from figures import add, say
from native import clock

# Name in the table, how many attackers, what each runs.
ATTACKS = [
    ("alone", 0, ""),
    ("beside 2 that spin", 2, "spin"),
    ("beside 2 that write to their disks, 32 in flight", 2, "bench-blk op=write depth=32 count=1000000000"),
    ("beside 2 that print without pause", 2, "chatter"),
    ("beside 2 that reset themselves without end", 2, "reset-without-end"),
]
DISK_BYTES = 64 << 20
READS = 20_000


class Instance:
    """A `kiln run` with a bare-metal guest in it."""

    def __init__(self, kiln: str, state: pathlib.Path, bare: pathlib.Path, image: pathlib.Path, test: str):
        command = [
            *(kiln, "run", image, "--kernel", bare, "--cmdline", f"{clock()} test={test}"),
            *("--instance-type", "t3.nano", "--vcpus", "1", "--memory", "64M", "--no-network"),
        ]
        environment = {**os.environ, "KILN_STATE_DIR": str(state), "KILN_ALLOW_SOFTWARE_KVM": "1"}
        self.process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )

    def wait_for(self, pattern: str) -> re.Match:
        for line in self.process.stdout:
            if found := re.search(pattern, line):
                return found
        raise SystemExit(f"bench: the guest ended before it printed {pattern!r}")

    def close(self) -> None:
        self.process.stdout.close()
        # The first presses the power button, the second ends the machine.
        for _ in range(2):
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(1)
        self.process.wait()


def measure(start, attackers: int, attack: str) -> float:
    """Microseconds per 4 KiB read of the instance that minds its own business."""
    with contextlib.ExitStack() as stack:
        for _ in range(attackers):
            neighbour = stack.enter_context(contextlib.closing(start(attack)))
            neighbour.wait_for("kiln guest")
        ours = stack.enter_context(contextlib.closing(start(f"bench-blk op=read depth=1 count={READS}")))
        return int(ours.wait_for(r"(\d+) ns each")[1]) / 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kiln", required=True)
    parser.add_argument("--bare", type=pathlib.Path, required=True)
    parser.add_argument("--samples", type=int, default=5)
    arguments = parser.parse_args()
    samples: figures.Samples = {}
    with tempfile.TemporaryDirectory(prefix="kiln-bench-") as scratch:
        image = pathlib.Path(scratch) / "disk.raw"
        image.write_bytes(os.urandom(1 << 20) * (DISK_BYTES >> 20))
        state = pathlib.Path(scratch) / "state"

        def start(test: str) -> Instance:
            return Instance(arguments.kiln, state, arguments.bare, image, test)

        for sample in range(arguments.samples):
            for name, attackers, attack in ATTACKS:
                say(f"sample {sample + 1} of {arguments.samples}: {name}")
                add(samples, "us per 4 KiB read", name, measure(start, attackers, attack))
    alone = samples["us per 4 KiB read"][ATTACKS[0][0]]
    print(f"one instance beside its neighbours, {os.cpu_count()} processors ({arguments.samples} samples)")
    for name, _, _ in ATTACKS:
        values = samples["us per 4 KiB read"][name]
        print(f"  {name:50} {figures.spread(values):>24} us per read, to alone {figures.ratio(values, alone)}")


if __name__ == "__main__":
    main()
