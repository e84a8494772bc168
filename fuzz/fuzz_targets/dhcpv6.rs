//! DHCPv6 messages of any content.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| kiln_linklocal::fuzzing::dhcpv6(data));
