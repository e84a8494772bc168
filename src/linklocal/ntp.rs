//! Time over NTP (RFC 5905): an answer from the host's clock, as from a stratum 3 server, so that the
//! guest becomes stratum 4.
//!
//! ```text
//!    0  leap·version·mode, stratum, poll, precision
//!    4  root delay, root dispersion, reference id
//!   16  reference, 24 origin, 32 receive, 40 transmit timestamp: seconds since 1900, fraction
//! ```

use std::time::Duration;

/// Port of the server.
pub(crate) const PORT: u16 = 123;

const MESSAGE: usize = 48;
const MODE_CLIENT: u8 = 3;
const MODE_SERVER: u8 = 4;
const STRATUM: u8 = 3;
/// 2^-20 s: about a microsecond.
const PRECISION: i8 = -20;
/// Root delay and dispersion in 2^-16 s: about a millisecond each.
const ROOT_DISTANCE: u32 = 66;
/// Seconds from 1900 to 1970.
const NTP_TO_UNIX: u64 = 2_208_988_800;

/// The answer to a client's `message`, the time being `wall`.
pub(crate) fn answer(message: &[u8], wall: Duration) -> Option<[u8; MESSAGE]> {
    let request = message.first_chunk::<MESSAGE>()?;
    let version = request[0] >> 3 & 0x7;
    if request[0] & 0x7 != MODE_CLIENT || !(1..=4).contains(&version) {
        return None;
    }
    let now = timestamp(wall);
    // The clock was last set at a full multiple of 16 s, the poll interval clients are told to use.
    let reference = timestamp(Duration::from_secs(wall.as_secs() & !0xf));
    let mut reply = [0; MESSAGE];
    reply[0] = version << 3 | MODE_SERVER;
    reply[1] = STRATUM;
    reply[2] = request[2];
    reply[3] = PRECISION.to_be_bytes()[0];
    reply[4..8].copy_from_slice(&ROOT_DISTANCE.to_be_bytes());
    reply[8..12].copy_from_slice(&ROOT_DISTANCE.to_be_bytes());
    reply[12..16].copy_from_slice(&[169, 254, 169, 122]);
    reply[16..24].copy_from_slice(&reference);
    reply[24..32].copy_from_slice(&request[40..48]);
    reply[32..40].copy_from_slice(&now);
    reply[40..48].copy_from_slice(&now);
    Some(reply)
}

/// 32 bits of seconds in the current era, 32 bits of fraction.
fn timestamp(wall: Duration) -> [u8; 8] {
    let seconds = wall.as_secs().wrapping_add(NTP_TO_UNIX);
    let fraction = (u64::from(wall.subsec_nanos()) << 32) / 1_000_000_000;
    (seconds << 32 | fraction).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(first: u8) -> [u8; MESSAGE] {
        let mut request = [0; MESSAGE];
        request[0] = first;
        request[2] = 6;
        request[40..48].copy_from_slice(&[1, 2, 3, 4, 5, 6, 7, 8]);
        request
    }

    #[test]
    fn client_gets_its_timestamp_back_and_ours() {
        let wall = Duration::new(1_719_527_491, 500_000_000);
        let reply = answer(&request(0x23), wall).unwrap();
        assert_eq!(reply[0], 0x24, "no leap warning, version 4, server");
        assert_eq!((reply[1], reply[2]), (3, 6));
        assert_eq!(reply[24..32], [1, 2, 3, 4, 5, 6, 7, 8]);
        let seconds = (1_719_527_491u64 + 2_208_988_800) as u32;
        assert_eq!(reply[40..44], seconds.to_be_bytes());
        assert_eq!(reply[44..48], [0x80, 0, 0, 0]);
        assert_eq!(reply[32..40], reply[40..48]);
        assert!(reply[16..20] <= reply[32..36]);
    }

    #[test]
    fn version_is_repeated_and_other_modes_are_ignored() {
        for version in 1..=4 {
            assert_eq!(answer(&request(version << 3 | 3), Duration::ZERO).unwrap()[0] >> 3, version);
        }
        for first in [0x24, 0x21, 0x26, 0x27, 0x03, 0x2b, 0x3b] {
            assert_eq!(answer(&request(first), Duration::ZERO), None, "{first:#x}");
        }
        assert_eq!(answer(&request(0x23)[..47], Duration::ZERO), None);
        assert!(answer(&[&request(0x23)[..], &[0; 20]].concat(), Duration::MAX).is_some());
    }
}
