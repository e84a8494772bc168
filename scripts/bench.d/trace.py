"""KVM exits by reason, counted in the kernel by tracefs histograms."""
import contextlib
import pathlib
import re
from collections.abc import Callable, Iterator

EVENTS = pathlib.Path("/sys/kernel/tracing/events/kvm")
# What is counted: the event, the keys of its histogram.
HISTOGRAMS = {
    "exits by reason": ("kvm_exit", "exit_reason"),
    "ports (address, 1 = write)": ("kvm_pio", "port.hex,rw"),
    "CPUID leaves": ("kvm_cpuid", "function.hex"),
    "MSRs (number, 1 = write)": ("kvm_msr", "ecx.hex,write"),
    "memory-mapped I/O (4 KiB page)": ("kvm_mmio", "gpa.hex"),
}
# Exit codes of AMD's SVM (APM volume 2, appendix C) and Intel's VMX (SDM volume 3, appendix C).
SVM = {
    0x40: "DE", 0x60: "INTR", 0x64: "VINTR", 0x6e: "RDTSC", 0x72: "CPUID", 0x78: "HLT", 0x7b: "IOIO", 0x7c: "MSR",
    0x10: "CR0 write", 0x65: "CR0 selective", 0x400: "NPF", 0x77: "PAUSE", 0x61: "NMI", 0x81: "VMMCALL", 0x89: "WBINVD",
    0x8d: "XSETBV", 0x52: "MACHINE CHECK", 0x4e: "PF", 0x6d: "RDTSCP", 0x2: "CR2 read", 0x0: "CR0 read", 0x14: "CR4 write",
}
VMX = {
    0: "EXCEPTION", 1: "INTR", 7: "INTR WINDOW", 10: "CPUID", 12: "HLT", 28: "CR", 30: "IO", 31: "MSR read", 32: "MSR write",
    48: "EPT VIOLATION", 49: "EPT MISCONFIG", 52: "PREEMPTION TIMER", 55: "XSETBV",
}
LINE = re.compile(r"\{ (.*?) \} hitcount:\s+(\d+)")


@contextlib.contextmanager
def exits() -> Iterator[Callable[[], dict[str, dict[str, int]]]]:
    """While open, counts; the function that it gives tells what was counted so far."""
    triggers = []
    for event, keys in HISTOGRAMS.values():
        trigger = f"hist:keys={keys}:size=4096"
        try:
            (EVENTS / event / "trigger").write_text(trigger)
            triggers.append((event, trigger))
        except OSError:
            pass  # No tracing here, or no such event.
    try:
        yield read
    finally:
        for event, trigger in triggers:
            (EVENTS / event / "trigger").write_text("!" + trigger)


def read() -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for what, (event, _) in HISTOGRAMS.items():
        by_reason: dict[str, int] = {}
        file = EVENTS / event / "hist"
        for keys, count in LINE.findall(file.read_text() if file.exists() else ""):
            values = [part.split(":")[1].strip() for part in keys.split(",")]
            name = exit_name(int(values[0])) if event == "kvm_exit" else " ".join(v.removeprefix("0x") for v in values)
            if event == "kvm_mmio":
                name = name[:-3] or "0"
            by_reason[name] = by_reason.get(name, 0) + int(count)
        found[what] = by_reason
    return found


def exit_name(code: int) -> str:
    names = SVM if pathlib.Path("/sys/module/kvm_amd").exists() else VMX
    return names.get(code, hex(code))
