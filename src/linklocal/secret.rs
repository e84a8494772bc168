//! Keys from the one seed of a boot, so that what the guest sees of one use says nothing about
//! another.

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

/// A key for `purpose`, bound to `context`.
pub(crate) fn derive(seed: &[u8; 32], purpose: &str, context: &[u8]) -> [u8; 32] {
    let mut mac = keyed(seed);
    mac.update(purpose.as_bytes());
    mac.update(&[0]);
    mac.update(context);
    mac.finalize().into_bytes().into()
}

/// HMAC-SHA-256 under `key`.
pub(crate) fn keyed(key: &[u8; 32]) -> Hmac<Sha256> {
    #[expect(clippy::expect_used, reason = "HMAC takes keys of any length (RFC 2104)")]
    Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes a key of 32 bytes")
}

/// Numbers that the guest cannot foretell.
pub(crate) struct Unpredictable {
    key: Hmac<Sha256>,
    drawn: u64,
}

impl Unpredictable {
    pub(crate) fn new(key: &[u8; 32]) -> Self {
        Unpredictable { key: keyed(key), drawn: 0 }
    }

    pub(crate) fn next_u64(&mut self) -> u64 {
        self.drawn = self.drawn.wrapping_add(1);
        let block: [u8; 32] =
            self.key.clone().chain_update(self.drawn.to_be_bytes()).finalize().into_bytes().into();
        let [a, b, c, d, e, f, g, h, ..] = block;
        u64::from_be_bytes([a, b, c, d, e, f, g, h])
    }

    pub(crate) fn next_u16(&mut self) -> u16 {
        let [a, b, ..] = self.next_u64().to_be_bytes();
        u16::from_be_bytes([a, b])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn purposes_contexts_and_seeds_are_kept_apart() {
        let all = [
            derive(&[1; 32], "a", b"x"),
            derive(&[1; 32], "b", b"x"),
            derive(&[1; 32], "a", b"y"),
            derive(&[2; 32], "a", b"x"),
            derive(&[1; 32], "ax", b""),
        ];
        for (number, one) in all.iter().enumerate() {
            assert!(!all[number + 1..].contains(one));
        }
    }
}
