//! Memory of the host.

use std::fs;

use kiln_model::ByteSize;
use kiln_model::size::{KIB, MIB};

use crate::instances::HostMemory;

/// What `/proc/meminfo` says now. Where it cannot be read, nothing is taken to be scarce.
pub fn host_memory() -> HostMemory {
    fs::read_to_string("/proc/meminfo")
        .ok()
        .and_then(|text| parse_meminfo(&text))
        .unwrap_or(HostMemory::UNBOUNDED)
}

/// All memory of the host. Where it cannot be read, nothing is taken to be scarce.
pub fn host_total_memory() -> ByteSize {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = field(&text, "MemTotal").and_then(|kib| kib.checked_mul(KIB));
    ByteSize::bytes(kib.unwrap_or(u64::MAX))
}

fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

/// Reads the text of `/proc/meminfo`.
pub fn parse_meminfo(text: &str) -> Option<HostMemory> {
    let value = |name| field(text, name);
    let available = value("MemAvailable")?.checked_mul(KIB)?;
    // Only the pool of the default size is counted, and only if that is 2 MiB.
    let two_mib = value("Hugepagesize").is_some_and(|kib| kib.checked_mul(KIB) == Some(2 * MIB));
    let free = value("HugePages_Free").filter(|_| two_mib).unwrap_or(0);
    Some(HostMemory {
        available: ByteSize::bytes(available),
        free_hugepages: ByteSize::bytes(free.checked_mul(2 * MIB)?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_come_from_their_lines() {
        let text =
            "MemTotal: 100 kB\nMemAvailable:   2048 kB\nHugePages_Free:    3\nHugepagesize:    2048 kB\n";
        let memory = parse_meminfo(text).unwrap();
        assert_eq!(memory.available, ByteSize::bytes(2 * MIB));
        assert_eq!(memory.free_hugepages, ByteSize::bytes(6 * MIB));
        let other =
            parse_meminfo("MemAvailable: 1 kB\nHugePages_Free: 3\nHugepagesize: 1048576 kB\n").unwrap();
        assert_eq!(other.free_hugepages, ByteSize::bytes(0));
        assert!(parse_meminfo("").is_none());
        assert!(parse_meminfo("MemAvailable: 99999999999999999999 kB").is_none());
        assert!(parse_meminfo("MemAvailable: 18446744073709551615 kB").is_none());
    }

    #[test]
    fn this_host_has_some() {
        assert!(host_memory().available > ByteSize::bytes(0));
    }
}
