//! The name of a service at a peer.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// The longest service name in bytes: it travels in front of every connection.
pub const SERVICE_NAME_BYTES_MAX: usize = 64;

/// The name of a service: 1 to 64 of the characters `a-z 0-9 . _ / : -`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceName(String);

/// The text cannot name a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("not a service name (expected 1 to 64 of the characters a-z 0-9 . _ / : -)")]
pub struct InvalidServiceName;

impl ServiceName {
    /// A checked name.
    ///
    /// # Errors
    /// [`InvalidServiceName`] for any other length or character.
    pub fn new(name: impl Into<String>) -> Result<Self, InvalidServiceName> {
        let name = name.into();
        let allowed =
            |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"._/:-".contains(&byte);
        let usable = !name.is_empty() && name.len() <= SERVICE_NAME_BYTES_MAX && name.bytes().all(allowed);
        if usable { Ok(Self(name)) } else { Err(InvalidServiceName) }
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl FromStr for ServiceName {
    type Err = InvalidServiceName;

    fn from_str(text: &str) -> Result<Self, InvalidServiceName> {
        Self::new(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_short_names_pass() {
        for name in ["rpc", "rpc:qwen3-8b/7", "a", &"x".repeat(64)] {
            assert_eq!(ServiceName::new(name).expect("a name").as_str(), name);
        }
        for text in ["", "RPC", "a b", "naïve", "a\n", &"x".repeat(65)] {
            assert_eq!(ServiceName::new(text), Err(InvalidServiceName), "{text:?}");
        }
    }
}
