"""What the kernel tells about a running VMM: processor time, memory, KVM's counters."""
import pathlib
import time

CPUCLOCK_SCHED = 2
KVM = pathlib.Path("/sys/kernel/debug/kvm")
EXIT_COUNTERS = ("exits", "io_exits", "mmio_exits", "irq_exits", "halt_exits", "irq_window_exits")


def cpu_seconds(pid: int) -> float:
    """User and system time of all threads so far, with the scheduler's precision."""
    return time.clock_gettime((~pid << 3) | CPUCLOCK_SCHED)


def thread_cpu(pid: int) -> dict[str, float]:
    """Seconds on a processor of each thread that lives, by thread name and number."""
    threads = {}
    for task in pathlib.Path(f"/proc/{pid}/task").iterdir():
        try:
            name = (task / "comm").read_text().strip()
            nanoseconds = int((task / "schedstat").read_text().split()[0])
        except (FileNotFoundError, ProcessLookupError):
            continue
        threads[f"{name}/{task.name}"] = nanoseconds / 1e9
    return threads


def outside_vcpus(pid: int) -> float:
    """Seconds on a processor of all threads but the vCPUs'."""
    return sum(seconds for name, seconds in thread_cpu(pid).items() if not is_vcpu(name))


def is_vcpu(name: str) -> bool:
    # QEMU names its threads only when asked to (-name debug-threads=on): "CPU 0/KVM".
    return name.startswith(("vcpu", "CPU "))


def memory_kib(pid: int, guest_mib: int) -> dict:
    """Resident and private dirty memory beyond guest memory, which is the largest mapping.

    Pages of a file count as dirty only where the process has a copy of its own: those of a program
    that was copied into a tmpfs are dirty for ever, whoever maps them.
    """
    mappings, current = [], {}
    for line in pathlib.Path(f"/proc/{pid}/smaps").read_text().splitlines():
        name, *rest = line.split()
        if name.endswith(":"):
            if rest and rest[-1] == "kB":
                current[name[:-1]] = int(rest[0])
        else:
            current = {"what": rest[-1] if len(rest) >= 5 else "anonymous"}
            mappings.append(current)
    guest = [m for m in mappings if m["Size"] >= guest_mib * 1024 * 3 // 4]
    ram = max(guest, key=lambda m: m["Rss"])
    rest = [m for m in mappings if m is not ram]
    dirty = [min(m["Private_Dirty"], m["Anonymous"]) for m in rest]
    by_mapping: dict[str, int] = {}
    for mapping, kib in zip(rest, dirty):
        if kib:
            what = str(mapping["what"]).rsplit("/", 1)[-1]
            by_mapping[what] = by_mapping.get(what, 0) + kib
    return {"rss": sum(m["Rss"] for m in rest), "private_dirty": sum(dirty), "dirty_by_mapping": by_mapping}


def kvm_counters(pid: int) -> dict[str, int]:
    """KVM's statistics of the one VM of a process; empty where debugfs is not mounted."""
    counters = {}
    for folder in KVM.glob(f"{pid}-*"):
        for name in EXIT_COUNTERS:
            file = folder / name
            if file.exists():
                counters[name] = counters.get(name, 0) + int(file.read_text())
    return counters
