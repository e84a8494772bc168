//! Tokens by which clients ask for what they were told of: a block of a snapshot, the next page of a list.
//!
//! ```text
//!   token = base64(number of a block, time until which it holds, HMAC-SHA256(key, what for, both))
//! ```
//! The key is the installation's, so tokens outlive the daemon that gave them. One for a block of one snapshot is
//! good for nothing else.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::Mac as _;
use kiln_controlplane::state::{SealError, Vault};
use kiln_model::{Secret, SnapshotId};

use super::sigv4::mac;

/// How long a token holds, in seconds, as in EC2.
pub(crate) const LIFE: u64 = 7 * 24 * 3600;
/// Name of the key in the vault.
const KEY: &str = "block-tokens";

/// What a token is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Reading a block of a snapshot.
    Block(SnapshotId),
    /// Going on with its list of blocks.
    List(SnapshotId),
    /// Going on with the list of what differs between two.
    Changes(SnapshotId, SnapshotId),
}

/// Gives tokens and knows them again.
pub(crate) struct BlockTokens(Secret<Vec<u8>>);

impl std::fmt::Debug for BlockTokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("BlockTokens")
    }
}

impl BlockTokens {
    /// With the key of the installation, made at the first use.
    pub(crate) fn open(vault: &Vault<'_>) -> Result<Self, SealError> {
        let make = || Ok(Secret::new(rand::random::<[u8; 32]>().to_vec()));
        vault.get_or_make(KEY, make).map(BlockTokens)
    }

    /// A token about block `index`; `until`: Unix seconds.
    pub(crate) fn give(&self, purpose: Purpose, index: u64, until: u64) -> String {
        let said = [index.to_be_bytes(), until.to_be_bytes()].concat();
        let sealed = mac(self.0.expose(), &text(purpose, &said)).map(|mac| mac.finalize().into_bytes());
        STANDARD.encode([said.as_slice(), sealed.as_ref().map_or(&[][..], |seal| seal.as_slice())].concat())
    }

    /// The block that a token is about, if it was given for this and still holds.
    pub(crate) fn read(&self, purpose: Purpose, token: &str, now: u64) -> Option<u64> {
        let bytes = STANDARD.decode(token).ok()?;
        let (said, seal) = bytes.split_first_chunk::<16>()?;
        let (index, until) = said.split_first_chunk::<8>()?;
        // In constant time.
        mac(self.0.expose(), &text(purpose, said))?.verify_slice(seal).ok()?;
        let until = u64::from_be_bytes(until.try_into().ok()?);
        (now <= until).then(|| u64::from_be_bytes(*index))
    }
}

fn text(purpose: Purpose, said: &[u8]) -> String {
    let said: String = said.iter().map(|byte| format!("{byte:02x}")).collect();
    match purpose {
        Purpose::Block(snapshot) => format!("block {snapshot} {said}"),
        Purpose::List(snapshot) => format!("list {snapshot} {said}"),
        Purpose::Changes(first, second) => format!("changes {first} {second} {said}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn token_is_good_for_what_it_was_given_for_and_for_its_time() {
        let tokens = BlockTokens(Secret::new(vec![1; 32]));
        let [a, b] = [1, 2].map(SnapshotId::from_bits);
        let token = tokens.give(Purpose::Block(a), 7, 1000);
        assert_eq!(tokens.read(Purpose::Block(a), &token, 1000), Some(7));
        assert_eq!(tokens.read(Purpose::Block(a), &token, 1001), None);
        for other in [Purpose::Block(b), Purpose::List(a), Purpose::Changes(a, a)] {
            assert_eq!(tokens.read(other, &token, 0), None, "{other:?}");
        }
        let page = tokens.give(Purpose::Changes(a, b), 7, 1000);
        assert_eq!(tokens.read(Purpose::Changes(b, a), &page, 0), None);
        assert_eq!(BlockTokens(Secret::new(vec![2; 32])).read(Purpose::Block(a), &token, 0), None);
    }

    #[test]
    fn any_change_of_a_token_is_noticed() {
        let tokens = BlockTokens(Secret::new(vec![1; 32]));
        let purpose = Purpose::Block(SnapshotId::from_bits(1));
        let token = tokens.give(purpose, 7, 1000);
        let bytes = STANDARD.decode(&token).unwrap();
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            assert_eq!(tokens.read(purpose, &STANDARD.encode(&changed), 0), None, "{at}");
            assert_eq!(tokens.read(purpose, &STANDARD.encode(&bytes[..at]), 0), None, "{at}");
        }
        for bad in ["", "é", "====", &format!("{token}AAAA")] {
            assert_eq!(tokens.read(purpose, bad, 0), None, "{bad}");
        }
        // As the model has it.
        assert!(
            token.len() <= 256 && token.bytes().all(|b| b.is_ascii_alphanumeric() || b"+/=".contains(&b))
        );
    }
}
