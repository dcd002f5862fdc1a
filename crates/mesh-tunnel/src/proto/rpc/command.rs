//! The commands of an rpc-server, by the version that it says in its HELLO.

use super::RpcFault;
use super::tensor::{HASH_BYTES, SET_TENSOR_HEAD_BYTES, TENSOR_BYTES};

/// Asks which version the rpc-server speaks: the first command of a connection, 14 in every version.
pub(crate) const HELLO: u8 = 14;
/// Asks for memory: device u32, size u64.
pub(crate) const ALLOC_BUFFER: u8 = 0;
/// Gives memory back, by its pointer.
pub(crate) const FREE_BUFFER: u8 = 4;
const BUFFER_CLEAR: u8 = 5;
const INIT_TENSOR: u8 = 12;
const MEMSET_TENSOR: u8 = 17;
/// Writes a tensor.
pub(crate) const SET_TENSOR: u8 = 6;
/// Asks whether the rpc-server has the bytes of a tensor already.
pub(crate) const SET_TENSOR_HASH: u8 = 7;
/// Computes a graph that it brings.
pub(crate) const GRAPH_COMPUTE: u8 = 10;
/// Commands from here on are the tunnel's own and never come from a llama-server.
pub(crate) const OWN_FIRST: u8 = 0xE0;

/// Command and size in front of each payload.
pub(crate) const HEAD_BYTES: usize = 9;
/// Size in front of each reply.
pub(crate) const REPLY_HEAD_BYTES: usize = 8;
/// HELLO carries at most 24 bytes of capabilities, and its reply 4 more; some room for versions to come.
pub(crate) const HELLO_BYTES_MAX: u64 = 64;
/// `peer_id u32 | endpoint char[128]`.
pub(crate) const REGISTER_PEER_BYTES: u64 = 132;
/// A graph: 296 bytes a tensor; the largest models have some 100,000 in one graph.
const GRAPH_BYTES_MAX: u64 = 512 << 20;

/// What an rpc-server says in its HELLO.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Version {
    pub(crate) major: u8,
    pub(crate) minor: u8,
    pub(crate) patch: u8,
}

impl Version {
    /// Of the payload of a reply to HELLO; versions that say less than three bytes are unknown: 0.0.0.
    pub(crate) fn of(payload: &[u8]) -> Self {
        match payload {
            [major, minor, patch, ..] => Self { major: *major, minor: *minor, patch: *patch },
            _ => Self { major: 0, minor: 0, patch: 0 },
        }
    }

    /// What is known of a command in this version.
    pub(crate) fn command(self, code: u8) -> Option<&'static Command> {
        let table = if self.major == STOCK_MAJOR { STOCK } else { return None };
        table.iter().find(|command| command.code == code)
    }

    /// Whether the frame is the fork's REGISTER_PEER: 17 in its first form and 18 in the later one, where this version has
    /// no command of its own.
    pub(crate) fn is_register_peer(self, head: Head) -> bool {
        matches!(head.command, 17 | 18)
            && head.bytes == REGISTER_PEER_BYTES
            && self.command(head.command).is_none()
    }
}

/// A command of one version.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Command {
    pub(crate) code: u8,
    pub(crate) name: &'static str,
    payload: Payload,
    pub(crate) replies: bool,
}

impl Command {
    /// Whether nobody waits for it: only what is written into tensors shows, once something else asks for it or computes
    /// with it.
    pub(crate) fn is_quiet(&self) -> bool {
        matches!(self.code, BUFFER_CLEAR | SET_TENSOR | INIT_TENSOR | MEMSET_TENSOR)
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Payload {
    Exactly(usize),
    AtLeast(usize, u64),
}

/// Of llama.cpp b11434.
const STOCK_MAJOR: u8 = 7;
const STOCK: &[Command] = &[
    row(ALLOC_BUFFER, "ALLOC_BUFFER", Payload::Exactly(12), true),
    row(1, "GET_ALIGNMENT", Payload::Exactly(4), true),
    row(2, "GET_MAX_SIZE", Payload::Exactly(4), true),
    row(3, "BUFFER_GET_BASE", Payload::Exactly(8), true),
    row(FREE_BUFFER, "FREE_BUFFER", Payload::Exactly(8), false),
    row(BUFFER_CLEAR, "BUFFER_CLEAR", Payload::Exactly(9), false),
    row(SET_TENSOR, "SET_TENSOR", Payload::AtLeast(SET_TENSOR_HEAD_BYTES, u64::MAX), false),
    row(SET_TENSOR_HASH, "SET_TENSOR_HASH", Payload::Exactly(HASH_BYTES), true),
    row(8, "GET_TENSOR", Payload::Exactly(TENSOR_BYTES + 16), true),
    row(9, "COPY_TENSOR", Payload::Exactly(2 * TENSOR_BYTES), true),
    row(GRAPH_COMPUTE, "GRAPH_COMPUTE", Payload::AtLeast(12, GRAPH_BYTES_MAX), false),
    row(11, "GET_DEVICE_MEMORY", Payload::Exactly(4), true),
    row(INIT_TENSOR, "INIT_TENSOR", Payload::Exactly(TENSOR_BYTES), false),
    row(13, "GET_ALLOC_SIZE", Payload::Exactly(4 + 11 * TENSOR_BYTES), true),
    row(15, "DEVICE_COUNT", Payload::Exactly(0), true),
    row(16, "GRAPH_RECOMPUTE", Payload::Exactly(4), false),
    row(MEMSET_TENSOR, "MEMSET_TENSOR", Payload::Exactly(TENSOR_BYTES + 17), false),
];

const fn row(code: u8, name: &'static str, payload: Payload, replies: bool) -> Command {
    Command { code, name, payload, replies }
}

/// What stands in front of a payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) command: u8,
    /// Of the payload.
    pub(crate) bytes: u64,
}

impl Head {
    /// Of a frame's first nine bytes; `None` while there are fewer.
    pub(crate) fn of(bytes: &[u8]) -> Option<Self> {
        let (command, rest) = bytes.split_first()?;
        Some(Self { command: *command, bytes: u64::from_le_bytes(*rest.first_chunk()?) })
    }

    pub(crate) fn to_bytes(self) -> [u8; HEAD_BYTES] {
        let mut bytes = [self.command; HEAD_BYTES];
        bytes[1..].copy_from_slice(&self.bytes.to_le_bytes());
        bytes
    }

    /// Head and payload.
    pub(crate) fn frame_bytes(self) -> u64 {
        self.bytes.saturating_add(HEAD_BYTES as u64)
    }
}

/// What may pass to an rpc-server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// The longest payload of a frame, in bytes. 16 GiB: the largest tensors of today's models have some 11 GiB. A server
    /// makes room for a frame before it reads it.
    pub frame_bytes_max: u64,
    /// Whether commands pass that the server's version is not known to have. Yes: a newer version of the same protocol may
    /// have more of them, and a server ends a connection at a command that it does not know itself.
    pub unknown_commands: bool,
}

impl Default for Policy {
    fn default() -> Self {
        Self { frame_bytes_max: 16 << 30, unknown_commands: true }
    }
}

impl Policy {
    /// Whether the frame may pass; what is known of its command if it may.
    pub(crate) fn check(&self, version: Version, head: Head) -> Result<Option<&'static Command>, RpcFault> {
        if head.command >= OWN_FIRST {
            return Err(RpcFault::Reserved(head.command));
        }
        if head.command == HELLO {
            return Err(RpcFault::SecondHello);
        }
        let command = version.command(head.command);
        let fault = |bytes_max: u64| RpcFault::Size {
            command: command.map_or("unknown", |command| command.name),
            code: head.command,
            bytes: head.bytes,
            bytes_max,
        };
        let bytes_max = match command.map(|command| &command.payload) {
            None if !self.unknown_commands && !version.is_register_peer(head) => {
                return Err(RpcFault::Unknown(head.command, [version.major, version.minor, version.patch]));
            }
            None => self.frame_bytes_max,
            Some(Payload::Exactly(bytes)) if head.bytes != *bytes as u64 => return Err(fault(*bytes as u64)),
            Some(Payload::Exactly(bytes)) => *bytes as u64,
            Some(Payload::AtLeast(bytes, max)) if head.bytes < *bytes as u64 => {
                return Err(fault((*max).min(self.frame_bytes_max)));
            }
            Some(Payload::AtLeast(_, max)) => (*max).min(self.frame_bytes_max),
        };
        if head.bytes > bytes_max { Err(fault(bytes_max)) } else { Ok(command) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STOCK: Version = Version { major: 7, minor: 0, patch: 0 };

    #[test]
    fn sizes_are_those_of_the_packed_structures() {
        let exact = [
            (0, 12),
            (3, 8),
            (5, 9),
            (7, 312),
            (8, 312),
            (9, 592),
            (12, 296),
            (13, 3260),
            (15, 0),
            (17, 313),
        ];
        for (command, bytes) in exact {
            assert!(Policy::default().check(STOCK, Head { command, bytes }).is_ok(), "{command}");
            let fault =
                Policy::default().check(STOCK, Head { command, bytes: bytes + 1 }).expect_err("refused");
            assert!(fault.to_string().contains(&format!("of {} bytes", bytes + 1)), "{fault}");
        }
        assert!(Policy::default().check(STOCK, Head { command: SET_TENSOR, bytes: 305 }).is_ok());
        assert!(Policy::default().check(STOCK, Head { command: SET_TENSOR, bytes: 304 }).is_err());
    }

    #[test]
    fn a_frame_above_the_bound_is_refused_by_name_and_size() {
        let policy = Policy { frame_bytes_max: 1000, ..Policy::default() };
        let fault = policy.check(STOCK, Head { command: SET_TENSOR, bytes: 1001 }).expect_err("refused");
        assert_eq!(fault.to_string(), "a frame SET_TENSOR (6) of 1001 bytes, at most 1000 are taken");
        let fault = policy.check(STOCK, Head { command: 200, bytes: u64::MAX }).expect_err("refused");
        assert!(
            fault.to_string().starts_with("a frame unknown (200) of 18446744073709551615 bytes"),
            "{fault}"
        );
    }

    #[test]
    fn unknown_commands_pass_unless_the_policy_forbids_them() {
        let head = Head { command: 19, bytes: 5 };
        assert_eq!(Policy::default().check(STOCK, head).expect("passes"), None);
        let strict = Policy { unknown_commands: false, ..Policy::default() };
        let fault = strict.check(STOCK, head).expect_err("refused");
        assert_eq!(fault.to_string(), "command 19 is unknown in version 7.0.0 of the protocol");
        assert!(strict.check(STOCK, Head { command: 18, bytes: 132 }).is_ok(), "the fork's is known");
    }

    #[test]
    fn the_tunnels_own_commands_and_a_second_hello_never_come_from_a_program() {
        for command in OWN_FIRST..=u8::MAX {
            assert!(matches!(
                Policy::default().check(STOCK, Head { command, bytes: 0 }),
                Err(RpcFault::Reserved(_))
            ));
        }
        let hello = Head { command: HELLO, bytes: 24 };
        assert!(matches!(Policy::default().check(STOCK, hello), Err(RpcFault::SecondHello)));
    }

    #[test]
    fn seventeen_is_memset_in_stock_and_register_peer_in_the_fork() {
        let fork = Version { major: 3, minor: 7, patch: 0 };
        let head = |command| Head { command, bytes: REGISTER_PEER_BYTES };
        assert!(fork.is_register_peer(head(17)) && fork.is_register_peer(head(18)));
        assert!(!STOCK.is_register_peer(head(17)) && STOCK.is_register_peer(head(18)));
        assert!(!fork.is_register_peer(Head { command: 18, bytes: 612 }), "a push of the first form");
    }
}
