//! Checksums by which each event of a session vouches for all before it.

use crate::ids::SessionId;

/// Sets these hashes apart from every other use of BLAKE3.
const CONTEXT: [u8; 16] = *b"qmt session v1\0\0";

/// A link of the chain: 16 bytes find what a disk does to a file; they are no proof against a person who can write it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Checksum([u8; Self::BYTES]);

impl Checksum {
    pub(super) const BYTES: usize = 16;

    /// That before the first event which a session wrote itself.
    pub(super) fn start(session: SessionId) -> Self {
        Self([0; Self::BYTES]).hash(&[session.as_bytes()])
    }

    /// That of the event after this one: BLAKE3, keyed with this checksum and the context, over number and time as 64 bits
    /// big-endian and the body as JSON.
    pub(super) fn next(self, number: u64, at_ms: i64, body: &str) -> Self {
        self.hash(&[&number.to_be_bytes(), &at_ms.to_be_bytes(), body.as_bytes()])
    }

    fn hash(self, fields: &[&[u8]]) -> Self {
        let mut key = [0; blake3::KEY_LEN];
        let (before, context) = key.split_at_mut(Self::BYTES);
        before.copy_from_slice(&self.0);
        context.copy_from_slice(&CONTEXT);
        let mut hasher = blake3::Hasher::new_keyed(&key);
        for field in fields {
            hasher.update(field);
        }
        let mut checksum = [0; Self::BYTES];
        hasher.finalize_xof().fill(&mut checksum);
        Self(checksum)
    }

    pub(super) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        Some(Self(bytes.try_into().ok()?))
    }

    pub(super) fn to_vec(self) -> Vec<u8> {
        self.0.to_vec()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_and_all_before_count() {
        let session = SessionId::from_uuid(uuid::Uuid::from_u128(7));
        let start = Checksum::start(session);
        let one = start.next(1, 5, "{}");
        assert_eq!(one, Checksum::start(session).next(1, 5, "{}"));
        let others =
            [start.next(2, 5, "{}"), start.next(1, 6, "{}"), start.next(1, 5, "{ }"), one.next(1, 5, "{}")];
        assert!(others.iter().all(|other| *other != one));
        assert_ne!(start, Checksum::start(SessionId::from_uuid(uuid::Uuid::from_u128(8))));
    }

    /// The format of files on disks: a change of this value needs a migration.
    #[test]
    fn the_chain_is_what_it_was() {
        let session = SessionId::from_uuid(uuid::Uuid::from_u128(7));
        let checksum = Checksum::start(session).next(1, 5, "{}");
        let hex: String = checksum.to_vec().iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, "2c90d5c1119e2da3055ffd97774c5cb3");
    }
}
