//! User data: raw bytes that the guest reads back from the metadata service.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

/// At most [`UserData::MAX`] bytes. Its `Debug` shows only the length, since people put secrets
/// there.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct UserData(Vec<u8>);

/// Why user data are refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidUserData {
    /// Above the limit of EC2.
    #[error(
        "user data of {0} bytes are above the limit of {max} bytes (compress them, or fetch the rest from the guest)",
        max = UserData::MAX
    )]
    TooLarge(u64),
    /// Stored text is not base64.
    #[error("stored user data are damaged")]
    Damaged,
}

impl UserData {
    /// Largest size in raw bytes, before any encoding.
    pub const MAX: usize = 16384;

    /// Checks the size and wraps.
    pub fn new(bytes: Vec<u8>) -> Result<Self, InvalidUserData> {
        if bytes.len() > Self::MAX {
            return Err(InvalidUserData::TooLarge(u64::try_from(bytes.len()).unwrap_or(u64::MAX)));
        }
        Ok(UserData(bytes))
    }

    /// The raw bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for UserData {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "UserData({} bytes)", self.0.len())
    }
}

impl TryFrom<String> for UserData {
    type Error = InvalidUserData;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        UserData::new(STANDARD.decode(text).map_err(|_| InvalidUserData::Damaged)?)
    }
}

impl From<UserData> for String {
    fn from(data: UserData) -> String {
        STANDARD.encode(data.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limit_is_inclusive_and_debug_shows_no_content() {
        assert!(UserData::new(vec![b'a'; 16384]).is_ok());
        assert_eq!(UserData::new(vec![b'a'; 16385]), Err(InvalidUserData::TooLarge(16385)));
        let data = UserData::new(b"\x00\xffsecret".to_vec()).unwrap();
        assert_eq!(format!("{data:?}"), "UserData(8 bytes)");
        assert_eq!(UserData::try_from(String::from(data.clone())), Ok(data));
    }
}
