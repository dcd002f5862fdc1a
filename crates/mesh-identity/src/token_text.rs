//! The text forms of an invite, and what a text that is none of them seems to be.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::error::LooksLike;
use crate::invite::TOKEN_CHARS_MAX;
use crate::{InviteError, InviteToken, NodeId, ScopeId};

/// What stands before the token in its link form.
const URL_PREFIX: &str = "qmt://mesh/join/";

/// A first byte above this is no version of the format, so the text is not a future invite but something else.
const VERSION_MAX: u8 = 31;

impl InviteToken {
    /// Reads an invite from bare base64url without padding or from its `qmt://mesh/join/` link, white space around it
    /// allowed.
    ///
    /// # Errors
    /// [`InviteError`] says what is wrong with the text, or what it seems to be instead.
    pub fn parse(text: &str) -> Result<Self, InviteError> {
        let text = text.trim();
        if text.len() > TOKEN_CHARS_MAX + URL_PREFIX.len() {
            return Err(InviteError::TooLong { chars: text.chars().count() });
        }
        let token = match text.get(..URL_PREFIX.len()) {
            Some(prefix) if prefix.eq_ignore_ascii_case(URL_PREFIX) => &text[URL_PREFIX.len()..],
            _ => text,
        };
        if token.is_empty() {
            return Err(InviteError::Empty);
        }
        if let Some(looks_like) = recognise(token) {
            return Err(InviteError::NotAnInvite { looks_like });
        }
        if let Some(fault) = bad_character(token) {
            return Err(fault);
        }
        if token
            .get(..4)
            .and_then(|head| URL_SAFE_NO_PAD.decode(head).ok())
            .is_some_and(|head| head[0] > VERSION_MAX)
        {
            return Err(InviteError::NotAnInvite { looks_like: LooksLike::Unknown });
        }
        // Of sound characters only the end can be wrong: their number, or bits left over in the last.
        let bytes = URL_SAFE_NO_PAD.decode(token).map_err(|_| InviteError::Truncated)?;
        Ok(Self::decode(&bytes)?)
    }

    /// The link form, `qmt://mesh/join/<token>`.
    pub fn to_url(&self) -> String {
        format!("{URL_PREFIX}{self}")
    }
}

/// The bare token. It admits whoever reads it.
impl fmt::Display for InviteToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&URL_SAFE_NO_PAD.encode(self.encode()))
    }
}

impl FromStr for InviteToken {
    type Err = InviteError;

    fn from_str(text: &str) -> Result<Self, InviteError> {
        Self::parse(text)
    }
}

/// What `text` is, when it is clearly something other than a token.
fn recognise(text: &str) -> Option<LooksLike> {
    if text.starts_with('$') {
        Some(LooksLike::Variable)
    } else if text.parse::<NodeId>().is_ok() {
        Some(LooksLike::NodeId)
    } else if text.parse::<ScopeId>().is_ok() {
        Some(LooksLike::ScopeId)
    } else if text.contains("://") {
        Some(LooksLike::Url)
    } else if text.starts_with('/') || text.parse::<SocketAddr>().is_ok() {
        Some(LooksLike::Address)
    } else {
        None
    }
}

/// The first character that no token holds.
fn bad_character(token: &str) -> Option<InviteError> {
    let foreign = |c: char| !(c.is_ascii_alphanumeric() || c == '-' || c == '_');
    token
        .chars()
        .zip(1..)
        .find(|(c, _)| foreign(*c))
        .map(|(found, at)| InviteError::BadCharacter { at, found })
}
