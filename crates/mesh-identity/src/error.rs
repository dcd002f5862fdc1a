//! Why an invite or a grant was refused, said so that a person knows which it is and what to do.

use thiserror::Error;

use crate::chain::ChainError;
use crate::invite::TOKEN_CHARS_MAX;
use crate::wire::DecodeError;
use crate::{InviteGrant, UnixTime};

/// What a text that is no invite seems to be instead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum LooksLike {
    /// The peer id of a node.
    NodeId,
    /// A scope id.
    ScopeId,
    /// A URL that does not begin with `qmt://mesh/join/`.
    Url,
    /// An address such as `/ip4/192.0.2.1/tcp/9000` or `192.0.2.1:9000`.
    Address,
    /// A variable such as `${INVITE}` that nothing has expanded.
    Variable,
    /// Nothing that is known here.
    Unknown,
}

impl LooksLike {
    fn noun(self) -> &'static str {
        match self {
            Self::NodeId => "a node's id",
            Self::ScopeId => "a scope's id",
            Self::Url => "a url of another kind",
            Self::Address => "a network address",
            Self::Variable => "a variable that was not expanded",
            Self::Unknown => "some other text",
        }
    }
}

/// Why an invite admits nobody. No variant changes any state: a refused redemption is not a use.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum InviteError {
    /// There is no text at all.
    #[error("the invite is empty")]
    Empty,
    /// The text is longer than any invite.
    #[error("the text has {chars} characters; an invite has at most {TOKEN_CHARS_MAX}")]
    TooLong {
        /// How many it has.
        chars: usize,
    },
    /// The text is something else.
    #[error("this is {}, not an invite", looks_like.noun())]
    NotAnInvite {
        /// What it seems to be.
        looks_like: LooksLike,
    },
    /// A character that no invite holds.
    #[error("the invite holds {found:?} at character {at}, which is not base64url")]
    BadCharacter {
        /// Its position, counted from 1, in the token without its URL.
        at: usize,
        /// The character.
        found: char,
    },
    /// The end is missing.
    #[error("the invite is cut off")]
    Truncated,
    /// The bytes hold something that no invite holds.
    #[error("the invite is damaged: {reason}")]
    Malformed {
        /// What is wrong.
        reason: DecodeError,
    },
    /// Made by another version of this software.
    #[error(
        "the invite has format version {found}, this build reads version {}",
        crate::invite::TOKEN_VERSION
    )]
    WrongVersion {
        /// The version it says.
        found: u8,
    },
    /// Not signed by the issuer that it names: damaged, or forged.
    #[error("the invite's signature is wrong")]
    BadSignature,
    /// It, or a link of its chain, gives more than its issuer had.
    #[error("the invite gives more than its issuer was allowed to give")]
    Widened,
    /// Its time is over.
    #[error("the invite expired at {at}")]
    Expired {
        /// When.
        at: UnixTime,
    },
    /// The authority of its issuer has ended.
    #[error("the authority of the invite's issuer has ended")]
    IssuerExpired,
    /// Every use has been taken by another node.
    #[error("the invite is used up")]
    UsedUp,
    /// The invite, its issuer, or the node that shows it has been revoked.
    #[error("the invite has been revoked")]
    Revoked,
    /// The node asked is not in the invite's scope.
    #[error("the invite is for another scope")]
    WrongScope,
    /// The node asked did not issue the invite; only its issuer counts its uses.
    #[error("the invite was issued by another node")]
    WrongIssuer,
    /// The issuer may not, or may no longer, give what the invite promises.
    #[error("the invite's issuer may not admit with these permissions")]
    NotAllowed,
    /// The device's statement is not signed by the lasting key, has ended, or is about another key.
    #[error("the lasting key's statement about this device does not hold")]
    BadDevice,
    /// The issuer could not write the use down, so it admitted nobody.
    #[error("the issuer could not record the use of the invite")]
    LedgerUnavailable,
    /// Nobody answered at the invite's addresses. Said by the joiner, never by an issuer.
    #[error("the invite's issuer cannot be reached: {reason}")]
    IssuerUnreachable {
        /// The transport's reason.
        reason: String,
    },
    /// The issuer refused with a code that this build does not know.
    #[error("the issuer refused the invite with code {code}")]
    Refused {
        /// The code.
        code: u8,
    },
}

impl InviteError {
    /// The code that stands for it on the wire; each keeps its number for ever.
    pub fn code(&self) -> u8 {
        match self {
            Self::Empty => 1,
            Self::TooLong { .. } => 2,
            Self::NotAnInvite { .. } => 3,
            Self::BadCharacter { .. } => 4,
            Self::Truncated => 5,
            Self::Malformed { .. } => 6,
            Self::WrongVersion { .. } => 7,
            Self::BadSignature => 8,
            Self::Widened => 9,
            Self::Expired { .. } => 10,
            Self::IssuerExpired => 11,
            Self::UsedUp => 12,
            Self::Revoked => 13,
            Self::WrongScope => 14,
            Self::WrongIssuer => 15,
            Self::NotAllowed => 16,
            Self::BadDevice => 17,
            Self::LedgerUnavailable => 18,
            Self::IssuerUnreachable { .. } => 19,
            Self::Refused { code } => *code,
        }
    }

    /// The refusal that an issuer's code means for the invite that was shown to it.
    ///
    /// Codes that only a parser can find, and codes of later versions, become [`InviteError::Refused`].
    pub fn from_code(code: u8, shown: &InviteGrant) -> Self {
        match code {
            7 => Self::WrongVersion { found: shown.version },
            8 => Self::BadSignature,
            9 => Self::Widened,
            10 => Self::Expired { at: shown.expires_at.time().unwrap_or(UnixTime(0)) },
            11 => Self::IssuerExpired,
            12 => Self::UsedUp,
            13 => Self::Revoked,
            14 => Self::WrongScope,
            15 => Self::WrongIssuer,
            16 => Self::NotAllowed,
            17 => Self::BadDevice,
            18 => Self::LedgerUnavailable,
            code => Self::Refused { code },
        }
    }

    /// Whether the same invite may succeed later without anybody changing it.
    pub fn is_worth_retrying(&self) -> bool {
        matches!(self, Self::LedgerUnavailable | Self::IssuerUnreachable { .. })
    }

    /// What a person can do about it, as one sentence.
    pub fn mend(&self) -> &'static str {
        match self {
            Self::Empty => "paste the text that `qmt-cli invite` printed",
            Self::TooLong { .. } => "paste the invite alone, without the text around it",
            Self::NotAnInvite { looks_like: LooksLike::Variable } => {
                "set the variable, or paste the invite itself"
            }
            Self::NotAnInvite { looks_like: LooksLike::Address } => {
                "use --peer for an address; an invite goes to join"
            }
            Self::NotAnInvite { .. } => {
                "an invite is the text, or the qmt://mesh/join/ link, that `qmt-cli invite` printed"
            }
            Self::BadCharacter { .. } | Self::Truncated | Self::Malformed { .. } => {
                "copy the whole invite again, as one line; the QR code or the qmt:// link avoids the mistake"
            }
            Self::WrongVersion { .. } => "update qmt on both machines to the same release",
            Self::BadSignature => {
                "copy the invite again; if it fails again, ask for a new one from somebody you trust"
            }
            Self::Widened | Self::NotAllowed => "ask for an invite from the scope's founder or an admin",
            Self::Expired { .. } => {
                "ask for a new invite; if it should still hold, check this machine's clock"
            }
            Self::IssuerExpired => "ask for a new invite from a member whose own membership is current",
            Self::UsedUp => "ask for a new invite, or for one with more uses",
            Self::Revoked => "ask the scope's founder or an admin for a new invite",
            Self::WrongScope | Self::WrongIssuer => {
                "the node at the invite's address is another one now; ask for a new invite"
            }
            Self::BadDevice => {
                "restart the client, which makes a new throw-away key; check this machine's clock"
            }
            Self::LedgerUnavailable => {
                "try again; if it goes on, look at the log of the node that issued the invite"
            }
            Self::IssuerUnreachable { .. } => {
                "check that the node that issued the invite is running and online, then try again"
            }
            Self::Refused { .. } => "update qmt on this machine, or ask the issuer why",
        }
    }
}

impl From<DecodeError> for InviteError {
    fn from(error: DecodeError) -> Self {
        match error {
            DecodeError::Truncated => Self::Truncated,
            DecodeError::WrongVersion { found } => Self::WrongVersion { found },
            reason => Self::Malformed { reason },
        }
    }
}

impl From<ChainError> for InviteError {
    fn from(error: ChainError) -> Self {
        match error {
            ChainError::BadSignature => Self::BadSignature,
            ChainError::Expired { .. } => Self::IssuerExpired,
            ChainError::Widened | ChainError::TooLong => Self::Widened,
        }
    }
}

/// Why a grant gives no membership. Nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum GrantError {
    /// The bytes are no grant.
    #[error("the grant is damaged: {0}")]
    Malformed(DecodeError),
    /// Not signed by the issuer that it names, or by nobody whom the scope trusts.
    #[error("the grant's signature is wrong")]
    BadSignature,
    /// It gives more, or for longer, than its issuer was allowed to give.
    #[error("the grant gives more than its issuer was allowed to give")]
    Widened,
    /// It has ended.
    #[error("the grant expired at {at}")]
    Expired {
        /// When.
        at: UnixTime,
    },
    /// It begins in the future.
    #[error("the grant was issued at {at}, which is in the future here")]
    NotYetValid {
        /// When.
        at: UnixTime,
    },
    /// It is for another scope.
    #[error("the grant is for another scope")]
    WrongScope,
    /// It is another node's.
    #[error("the grant belongs to another node")]
    WrongSubject,
    /// Its subject, its invite or somebody in its chain has been revoked.
    #[error("the grant has been revoked")]
    Revoked,
}

impl GrantError {
    /// The code that stands for it on the wire; each keeps its number for ever. No code is an [`InviteError`]'s.
    pub fn code(&self) -> u8 {
        match self {
            Self::Malformed(_) => 64,
            Self::BadSignature => 65,
            Self::Widened => 66,
            Self::Expired { .. } => 67,
            Self::NotYetValid { .. } => 68,
            Self::WrongScope => 69,
            Self::WrongSubject => 70,
            Self::Revoked => 71,
        }
    }

    /// What a person can do about it, as one sentence.
    pub fn mend(&self) -> &'static str {
        match self {
            Self::Malformed(_)
            | Self::BadSignature
            | Self::Widened
            | Self::WrongScope
            | Self::WrongSubject => "leave the scope and join it again with a new invite",
            Self::Expired { .. } => {
                "join again with a new invite; if it should still hold, check both machines' clocks"
            }
            Self::NotYetValid { .. } => "check both machines' clocks",
            Self::Revoked => "ask the scope's founder or an admin for a new invite",
        }
    }
}

impl From<ChainError> for GrantError {
    fn from(error: ChainError) -> Self {
        match error {
            ChainError::BadSignature => Self::BadSignature,
            ChainError::Expired { at } => Self::Expired { at },
            ChainError::Widened | ChainError::TooLong => Self::Widened,
        }
    }
}
