"""Samples into a table: medians with their range, and ratios."""
import json
import pathlib
import statistics
import sys

Samples = dict[str, dict[str, list[float]]]


def say(text: str) -> None:
    print(f"bench: {text}", file=sys.stderr, flush=True)


def add(samples: Samples, metric: str, vmm: str, value: float) -> None:
    samples.setdefault(metric, {}).setdefault(vmm, []).append(value)


def number(value: float) -> str:
    if value == 0:
        return "0"
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:.{digits}f}"


def spread(values: list[float]) -> str:
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{number(middle)} [{number(low)}..{number(high)}]"


def ratio(ours: list[float], theirs: list[float]) -> str:
    """Of the medians, with the range of the pairs' ratios: samples with one index ran side by side."""
    middle = statistics.median(theirs)
    if middle == 0:
        return "-"
    pairs = [a / b for a, b in zip(ours, theirs) if b]
    return f"{number(statistics.median(ours) / middle)} [{number(min(pairs))}..{number(max(pairs))}]"


def table(title: str, samples: Samples, vmms: list[str]) -> str:
    """One line per metric; the last column relates the first VMM to the second."""
    compare = len(vmms) == 2
    rows = [["", *vmms, *([f"{vmms[0]}/{vmms[1]}"] if compare else [])]]
    for metric, by_vmm in samples.items():
        row = [metric, *(spread(by_vmm[vmm]) if by_vmm.get(vmm) else "-" for vmm in vmms)]
        if compare:
            both = all(by_vmm.get(vmm) for vmm in vmms)
            row.append(ratio(by_vmm[vmms[0]], by_vmm[vmms[1]]) if both else "-")
        rows.append(row)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:]))]) for row in rows]
    return "\n".join([title, lines[0], "-" * len(lines[0]), *lines[1:]])


def histogram(title: str, counts: dict[str, dict[str, int]], most: int = 12) -> str:
    """One block per VMM: what was counted, most frequent first."""
    lines = [title]
    for vmm, by_reason in counts.items():
        ordered = sorted(by_reason.items(), key=lambda item: -item[1])
        shown = [f"{reason} {count}" for reason, count in ordered[:most]]
        rest = sum(count for _, count in ordered[most:])
        lines.append(f"  {vmm}: {', '.join(shown)}" + (f", other {rest}" if rest else ""))
    return "\n".join(lines)


def save(path: pathlib.Path | None, results: dict) -> None:
    if path:
        path.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")
