//! Names of nodes and of meshes, checked before anybody prints or resolves them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use thiserror::Error;

use crate::wire::{DecodeError, Reader, put_short};

/// The longest mesh name in bytes; 20 letters is the usual length for which a token's size is promised.
pub const MESH_NAME_BYTES_MAX: usize = 64;

/// The longest label in DNS, so that `<node>.mesh` is always a host name.
const NODE_NAME_BYTES_MAX: usize = 63;

/// The name that a grant carries: 1 to 63 of the characters `A-Z a-z 0-9 . _ -`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeName(String);

/// The text cannot name a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("not a node name (expected 1 to 63 of the characters A-Z a-z 0-9 . _ -)")]
pub struct InvalidNodeName;

impl NodeName {
    /// A checked name.
    ///
    /// # Errors
    /// [`InvalidNodeName`] for any other length or character.
    pub fn new(name: impl Into<String>) -> Result<Self, InvalidNodeName> {
        let name = name.into();
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        if name.is_empty() || name.len() > NODE_NAME_BYTES_MAX || !name.bytes().all(allowed) {
            return Err(InvalidNodeName);
        }
        Ok(Self(name))
    }

    /// The name made of what is usable in `text`, such as a host name; `node` when nothing is.
    pub fn from_lossy(text: &str) -> Self {
        let clean = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '-' };
        let name: String = text.trim().chars().map(clean).take(NODE_NAME_BYTES_MAX).collect();
        Self::new(name).unwrap_or_else(|InvalidNodeName| Self("node".to_owned()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        put_short(out, self.0.as_bytes());
    }

    pub(crate) fn read(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let length = reader.byte()?;
        std::str::from_utf8(reader.bytes(usize::from(length))?)
            .ok()
            .and_then(|name| Self::new(name).ok())
            .ok_or(DecodeError::Invalid { what: "node name" })
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl FromStr for NodeName {
    type Err = InvalidNodeName;

    fn from_str(text: &str) -> Result<Self, InvalidNodeName> {
        Self::new(text)
    }
}

impl Serialize for NodeName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for NodeName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::new(String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

/// Whether `name` can name a mesh: 1 to 64 bytes, nothing that a terminal would act on or that would hide or reorder text.
pub(crate) fn is_mesh_name(name: &str) -> bool {
    let harmless = |c: char| !c.is_control() && !is_invisible(c);
    (1..=MESH_NAME_BYTES_MAX).contains(&name.len()) && name.trim() == name && name.chars().all(harmless)
}

/// Zero-width characters, line and paragraph separators, and the marks that change the direction of text.
fn is_invisible(c: char) -> bool {
    matches!(c, '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// An optional mesh name; length zero is none.
pub(crate) fn put_mesh_name(out: &mut Vec<u8>, name: Option<&str>) {
    put_short(out, name.unwrap_or_default().as_bytes());
}

pub(crate) fn read_mesh_name(reader: &mut Reader<'_>) -> Result<Option<String>, DecodeError> {
    let length = reader.byte()?;
    if length == 0 {
        return Ok(None);
    }
    let name = std::str::from_utf8(reader.bytes(usize::from(length))?).ok().filter(|name| is_mesh_name(name));
    name.map(|name| Some(name.to_owned())).ok_or(DecodeError::Invalid { what: "mesh name" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_names_are_host_names() {
        for name in ["a", "gpu-server", "ct110.mesh", "A_1", &"x".repeat(63)] {
            assert_eq!(NodeName::new(name).expect("a name").as_str(), name);
        }
        for name in ["", "two words", "naïve", "a/b", "\u{1b}[31m", &"x".repeat(64)] {
            assert_eq!(NodeName::new(name), Err(InvalidNodeName), "{name:?}");
        }
        assert_eq!(NodeName::from_lossy("Anna's Mac").as_str(), "Anna-s-Mac");
        assert_eq!(NodeName::from_lossy("  ").as_str(), "node");
    }

    #[test]
    fn mesh_names_do_nothing_to_a_terminal() {
        for name in ["home", "Das Büro", "研究室", &"x".repeat(64)] {
            assert!(is_mesh_name(name), "{name}");
        }
        for name in ["", " home", "a\nb", "\u{1b}[2J", "a\u{202e}b", "a\u{200b}b", "\u{7f}", &"x".repeat(65)]
        {
            assert!(!is_mesh_name(name), "{name:?}");
        }
    }
}
