//! The only types that are serialised on a link: hello, its answer, the stream header, calls.

use serde::{Deserialize, Serialize};

use crate::peer::{PROTOCOL_NAME_MAX, is_protocol_name};

/// First bytes of every hello.
pub(crate) const MAGIC: [u8; 8] = *b"qmt-mesh";
/// Lowest hello version spoken here.
pub(crate) const VERSION_MIN: u16 = 1;
/// Highest hello version spoken here.
pub(crate) const VERSION_MAX: u16 = 1;
/// Longest hello or answer: a grant with a full chain takes under 1 KiB, a token 400 bytes.
pub(crate) const HELLO_BYTES_MAX: usize = 16 * 1024;
/// Features are few words; the bound keeps a hello from being a word list.
pub(crate) const FEATURES_MAX: usize = 16;
/// Longest feature name.
pub(crate) const FEATURE_BYTES_MAX: usize = 32;
/// Longest text in a refusal.
pub(crate) const TEXT_BYTES_MAX: usize = 256;

/// What every version of hello begins with.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Preamble {
    pub(crate) magic: [u8; 8],
    pub(crate) version_min: u16,
    pub(crate) version_max: u16,
}

/// Dialer to acceptor, the first frame of the first stream. Later versions append fields.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Hello {
    pub(crate) preamble: Preamble,
    pub(crate) features: Vec<String>,
    pub(crate) scope: [u8; 32],
    /// Drawn at start: tells a restarted node from a second connection of the same run.
    pub(crate) instance: u64,
    pub(crate) credential: Credential,
}

/// Why the dialer should be let in.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Credential {
    /// An encoded signed grant.
    Grant(Vec<u8>),
    /// An invite to be redeemed.
    Invite(Redemption),
}

/// A request for admission.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Redemption {
    pub(crate) token: String,
    pub(crate) node_name: String,
    pub(crate) device: Option<Vec<u8>>,
}

/// Acceptor to dialer.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Answer {
    Welcome(Welcome),
    Refused(Refused),
}

/// The acceptor's side of hello.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Welcome {
    pub(crate) version: u16,
    pub(crate) features: Vec<String>,
    pub(crate) instance: u64,
    /// The acceptor's own grant.
    pub(crate) grant: Vec<u8>,
    /// The dialer's new grant, if it redeemed an invite.
    pub(crate) issued: Option<Vec<u8>>,
}

/// A refusal. `detail` is the invite error's code when `code` says so.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Refused {
    pub(crate) code: u8,
    pub(crate) detail: u8,
    pub(crate) version_min: u16,
    pub(crate) version_max: u16,
    pub(crate) text: String,
}

/// The request frame of a call.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct CallRequest<T> {
    /// How long the caller waits; the server drops the work after that.
    pub(crate) deadline_ms: u32,
    pub(crate) body: T,
}

/// What a call ended with, when not with a reply.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Fault {
    pub(crate) code: u16,
    pub(crate) message: String,
}

/// The bytes in front of every stream but hello's: one length byte, then the protocol's name.
pub(crate) fn stream_header(protocol: &str) -> Vec<u8> {
    let mut header = Vec::with_capacity(1 + protocol.len());
    header.push(u8::try_from(protocol.len()).expect("Protocol::new bounds the name at 32 bytes"));
    header.extend_from_slice(protocol.as_bytes());
    header
}

/// The length in a header's first byte, if it can be one.
pub(crate) fn header_length(byte: u8) -> Option<usize> {
    let length = usize::from(byte);
    (1..=PROTOCOL_NAME_MAX).contains(&length).then_some(length)
}

/// The protocol name in a header's body, if it is one.
pub(crate) fn header_name(body: &[u8]) -> Option<&str> {
    is_protocol_name(body).then(|| std::str::from_utf8(body).expect("protocol names are ASCII"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|b| format!("{b:02x}")).collect()
    }

    #[test]
    fn stream_header_is_length_and_name() {
        assert_eq!(hex(&stream_header("ping/1")), "0670696e672f31");
        assert_eq!(header_length(6), Some(6));
        assert_eq!(header_name(b"ping/1"), Some("ping/1"));
    }

    #[test]
    fn refuses_headers_that_no_protocol_can_have() {
        assert_eq!(header_length(0), None);
        assert_eq!(header_length(33), None);
        assert_eq!(header_length(255), None);
        assert_eq!(header_name(b"Ping/1"), None);
        assert_eq!(header_name(b"ping 1"), None);
        assert_eq!(header_name(&[0xff, 0xfe]), None);
    }

    #[test]
    fn hello_bytes_are_golden() {
        let hello = Hello {
            preamble: Preamble { magic: MAGIC, version_min: 1, version_max: 1 },
            features: vec!["a".into()],
            scope: [7; 32],
            instance: 300,
            credential: Credential::Grant(vec![1, 2, 3]),
        };
        let golden = format!("716d742d6d657368010101{}{}{}{}", "0161", "07".repeat(32), "ac02", "0003010203");
        assert_eq!(hex(&crate::frame::encode(&hello).expect("encodes")), golden);
        let redeeming = Hello {
            credential: Credential::Invite(Redemption {
                token: "T".into(),
                node_name: "n".into(),
                device: None,
            }),
            ..hello
        };
        let golden =
            format!("716d742d6d657368010101{}{}{}{}", "0161", "07".repeat(32), "ac02", "010154016e00");
        assert_eq!(hex(&crate::frame::encode(&redeeming).expect("encodes")), golden);
    }

    #[test]
    fn answer_bytes_are_golden() {
        let welcome = Answer::Welcome(Welcome {
            version: 1,
            features: Vec::new(),
            instance: 1,
            grant: vec![9],
            issued: Some(vec![8, 8]),
        });
        assert_eq!(hex(&crate::frame::encode(&welcome).expect("encodes")), "00010001010901020808");
        let refused = Answer::Refused(Refused {
            code: 7,
            detail: 4,
            version_min: 1,
            version_max: 1,
            text: "no".into(),
        });
        assert_eq!(hex(&crate::frame::encode(&refused).expect("encodes")), "0107040101026e6f");
    }

    #[test]
    fn call_frames_are_golden() {
        let request = CallRequest { deadline_ms: 5000, body: ("x".to_owned(), 2u8) };
        assert_eq!(hex(&crate::frame::encode(&request).expect("encodes")), "8827017802");
        let fault: Result<u8, Fault> = Err(Fault { code: 3, message: "no".into() });
        assert_eq!(hex(&crate::frame::encode(&fault).expect("encodes")), "0103026e6f");
    }
}
