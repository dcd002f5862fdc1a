//! What one registry may hold. Whoever has a certificate of the mesh's CA writes to it, so nothing in it is unbounded.

/// Bytes of one node's entry: a hundred agents and models with long names fit.
pub const ENTRY_BYTES_MAX: usize = 16 * 1024;
/// Nodes of one registry; four times the largest scope that we serve.
pub const NODES_MAX: usize = 4096;
/// Bytes of the file: as many entries of ordinary size. A bigger one is left alone.
pub const FILE_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// Bytes of a node's id in the registry.
pub const ID_BYTES_MAX: usize = 128;
/// The highest counter: what every JSON reader holds exactly. A node that writes a thousand times a second gets there in
/// three hundred thousand years.
pub const COUNTER_MAX: u64 = (1 << 53) - 1;
