//! Session tokens: sealed, not stored.
//!
//! ```text
//!    0      6    8                                   40
//!    ├──────┼────┼───────────────────────────────────┤
//!    │expiry│ no │ HMAC-SHA-256(key, first 8 bytes)  │   URL-safe base64: 56 characters
//!    └──────┴────┴───────────────────────────────────┘
//!    key = HMAC-SHA-256(seed of this boot, "metadata token" 0 instance id)
//! ```
//!
//! Any number may be valid at once and none costs memory. A token is worth nothing to another
//! instance (other id, other seed) and nothing after a restart or a restore from a snapshot (other
//! seed). The expiry, in milliseconds of uptime, can be read by the holder, who knows it anyway.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE;
use hmac::{Hmac, Mac};
use sha2::Sha256;

use crate::secret::{derive, keyed};

/// Longest life of a token in seconds: six hours.
pub const MAX_TTL_SECONDS: u32 = 21_600;

const CLEAR: usize = 8;
const SEAL: usize = 32;
/// Characters of a token.
pub const TOKEN_LENGTH: usize = 56;

/// Makes and checks the tokens of one instance during one boot.
pub(crate) struct TokenAuthority {
    key: Hmac<Sha256>,
    issued: u16,
}

impl TokenAuthority {
    pub(crate) fn new(seed: &[u8; 32], instance_id: &str) -> Self {
        let key = derive(seed, "metadata token", instance_id.as_bytes());
        TokenAuthority { key: keyed(&key), issued: 0 }
    }

    /// A token that is good for `ttl_seconds` from `uptime` on.
    pub(crate) fn issue(&mut self, uptime: Duration, ttl_seconds: u32) -> String {
        let expiry = uptime.saturating_add(Duration::from_secs(u64::from(ttl_seconds)));
        // 48 bits of milliseconds are 8900 years of uptime.
        let [_, _, expiry @ ..] = u64::try_from(expiry.as_millis()).unwrap_or(0).to_be_bytes();
        self.issued = self.issued.wrapping_add(1);
        let mut token = Vec::with_capacity(CLEAR + SEAL);
        token.extend_from_slice(&expiry);
        token.extend_from_slice(&self.issued.to_be_bytes());
        let seal = self.key.clone().chain_update(&token).finalize().into_bytes();
        token.extend_from_slice(&seal);
        URL_SAFE.encode(token)
    }

    /// Time left of `token`; `None` if it is not ours or has expired.
    pub(crate) fn remaining(&self, uptime: Duration, token: &[u8]) -> Option<Duration> {
        if token.len() != TOKEN_LENGTH {
            return None;
        }
        let bytes = URL_SAFE.decode(token).ok()?;
        let (clear, seal) = bytes.split_first_chunk::<CLEAR>()?;
        self.key.clone().chain_update(clear).verify_slice(seal).ok()?;
        let [a, b, c, d, e, f, ..] = *clear;
        let expiry = Duration::from_millis(u64::from_be_bytes([0, 0, a, b, c, d, e, f]));
        expiry.checked_sub(uptime).filter(|left| !left.is_zero())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UPTIME: Duration = Duration::from_millis(123_456);

    fn authority(seed: u8, instance: &str) -> TokenAuthority {
        TokenAuthority::new(&[seed; 32], instance)
    }

    #[test]
    fn token_is_56_characters_and_dies_on_the_second() {
        let mut ours = authority(1, "i-1");
        let token = ours.issue(UPTIME, 60);
        assert_eq!(token.len(), TOKEN_LENGTH);
        let left = |later| ours.remaining(UPTIME + Duration::from_millis(later), token.as_bytes());
        assert_eq!(left(0), Some(Duration::from_secs(60)));
        assert_eq!(left(59_999), Some(Duration::from_millis(1)));
        assert_eq!(left(60_000), None);
        assert_eq!(left(60_001), None);
    }

    #[test]
    fn tokens_of_another_instance_or_boot_are_refused() {
        let token = authority(1, "i-1").issue(UPTIME, 60);
        assert!(authority(1, "i-1").remaining(UPTIME, token.as_bytes()).is_some());
        assert_eq!(authority(1, "i-2").remaining(UPTIME, token.as_bytes()), None);
        assert_eq!(authority(2, "i-1").remaining(UPTIME, token.as_bytes()), None);
    }

    #[test]
    fn tokens_differ_and_any_changed_character_is_noticed() {
        let mut ours = authority(1, "i-1");
        let token = ours.issue(UPTIME, 60);
        assert_ne!(token, ours.issue(UPTIME, 60));
        for at in 0..token.len() {
            let mut forged = token.clone().into_bytes();
            forged[at] = if forged[at] == b'A' { b'B' } else { b'A' };
            assert_eq!(ours.remaining(UPTIME, &forged), None, "position {at}");
        }
        for text in ["", "AAAA", &token[..55], &format!("{token}A"), &"=".repeat(56), &"A".repeat(56)] {
            assert_eq!(ours.remaining(UPTIME, text.as_bytes()), None, "{text}");
        }
    }
}
