//! What one record may hold. These bounds are part of the protocol: every member checks them in every record.

/// Keys that one node may use in one life, removed ones included (they leave a mark until the node restarts).
pub const KEYS_MAX: usize = 64;
/// Bytes of one key.
pub const KEY_BYTES_MAX: usize = 64;
/// Bytes of one value.
pub const VALUE_BYTES_MAX: usize = 4 * 1024;
/// Bytes of all values of one node.
pub const NODE_BYTES_MAX: usize = 32 * 1024;
/// Bytes of a grant: a chain of four links leaves ample room.
pub(crate) const GRANT_BYTES_MAX: usize = 4 * 1024;
/// Bytes of an encoded address: eight socket addresses and a relay's URL leave ample room.
pub(crate) const ADDR_BYTES_MAX: usize = 1024;
/// Bytes of one signed revocation.
pub(crate) const REVOCATION_BYTES_MAX: usize = 2 * 1024;
/// Bytes of one frame: a digest of 16,000 members fits.
pub const FRAME_BYTES_MAX: usize = 1024 * 1024;
/// A batch of records is cut when it passes this size, so that pings do not wait behind it.
pub(crate) const BATCH_BYTES: usize = 64 * 1024;
/// Bytes of records sent in answer to one frame; the next round of anti-entropy goes on from there.
pub(crate) const ANSWER_BYTES_MAX: usize = 1024 * 1024;
