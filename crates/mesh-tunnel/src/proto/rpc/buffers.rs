//! What a host allocates at an rpc-server, so that it is no more than what it was lent.

use std::collections::{HashMap, VecDeque};

use super::RpcFault;

/// Allocations that may be asked for before one is answered. A llama-server waits for each.
const UNANSWERED_MAX: usize = 16;
/// Buffers of one connection: a llama-server has a handful for each device.
const BUFFERS_MAX: usize = 4096;
/// The reply to an ALLOC_BUFFER: pointer and size.
const REPLY_BYTES: usize = 16;
/// The reply of an rpc-server that has no memory left, with its head: no pointer, no size. A llama-server says which buffer it
/// could not get, and ends.
pub(crate) const NO_MEMORY: [u8; 8 + REPLY_BYTES] = {
    let mut reply = [0; 8 + REPLY_BYTES];
    reply[0] = 16;
    reply
};

/// The buffers of one connection.
#[derive(Debug, Default)]
pub(crate) struct Buffers {
    /// The number of the reply, and the size that was asked for.
    unanswered: VecDeque<(u64, u64)>,
    by_pointer: HashMap<u64, u64>,
    /// Bytes of those of which the pointer is not known.
    nameless: u64,
}

impl Buffers {
    /// An allocation goes on, and the reply of this number will answer it.
    ///
    /// # Errors
    /// [`RpcFault::Unanswered`]: more than a llama-server asks for at once.
    pub(crate) fn ask(&mut self, reply: u64, bytes: u64) -> Result<(), RpcFault> {
        if self.unanswered.len() >= UNANSWERED_MAX {
            return Err(RpcFault::Unanswered(UNANSWERED_MAX));
        }
        self.unanswered.push_back((reply, bytes));
        Ok(())
    }

    /// An allocation goes on, and which reply will answer it is not known: it counts as long as the connection lives.
    pub(crate) fn ask_unnamed(&mut self, bytes: u64) {
        self.nameless = self.nameless.saturating_add(bytes);
    }

    /// Whether one more can be told apart.
    pub(crate) fn has_room(&self) -> bool {
        self.by_pointer.len() + self.unanswered.len() < BUFFERS_MAX
    }

    /// The number of the next reply that answers an allocation.
    pub(crate) fn awaited(&self) -> Option<u64> {
        self.unanswered.front().map(|(reply, _)| *reply)
    }

    /// The awaited reply has come: bytes that were not allocated after all.
    pub(crate) fn answered(&mut self, payload: &[u8]) -> u64 {
        let Some((_, bytes)) = self.unanswered.pop_front() else { return 0 };
        match payload.first_chunk().map(|pointer| u64::from_le_bytes(*pointer)) {
            Some(0) if payload.len() == REPLY_BYTES => bytes,
            Some(pointer) if payload.len() == REPLY_BYTES => {
                // A pointer that is there already would be a fault of the rpc-server's.
                self.nameless += self.by_pointer.insert(pointer, bytes).unwrap_or(0);
                0
            }
            _ => {
                self.nameless += bytes;
                0
            }
        }
    }

    /// A buffer is given back: its bytes, none for one that is not there.
    pub(crate) fn free(&mut self, pointer: u64) -> u64 {
        self.by_pointer.remove(&pointer).unwrap_or(0)
    }

    /// Bytes of all of them.
    pub(crate) fn bytes(&self) -> u64 {
        let unanswered = self.unanswered.iter().map(|(_, bytes)| *bytes);
        unanswered.chain(self.by_pointer.values().copied()).fold(self.nameless, u64::saturating_add)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn reply(pointer: u64, bytes: u64) -> Vec<u8> {
        [pointer.to_le_bytes(), bytes.to_le_bytes()].concat()
    }

    #[test]
    fn what_is_allocated_counts_until_it_is_freed() {
        let mut buffers = Buffers::default();
        buffers.ask(3, 100).expect("goes on");
        buffers.ask(7, 50).expect("goes on");
        assert_eq!((buffers.awaited(), buffers.bytes()), (Some(3), 150));
        assert_eq!(buffers.answered(&reply(0xa, 128)), 0);
        assert_eq!(buffers.awaited(), Some(7));
        assert_eq!(buffers.answered(&reply(0, 0)), 50, "the rpc-server has no memory");
        assert_eq!((buffers.awaited(), buffers.bytes()), (None, 100));
        assert_eq!(buffers.free(0xb), 0);
        assert_eq!((buffers.free(0xa), buffers.free(0xa), buffers.bytes()), (100, 0, 0));
    }

    #[test]
    fn more_than_a_llama_server_asks_for_is_a_fault() {
        let mut buffers = Buffers::default();
        for number in 0..UNANSWERED_MAX as u64 {
            buffers.ask(number, 1).expect("goes on");
        }
        assert!(matches!(buffers.ask(99, 1), Err(RpcFault::Unanswered(16))));
        for number in 0..UNANSWERED_MAX as u64 {
            buffers.answered(&reply(number + 1, 1));
        }
        for number in 0..(BUFFERS_MAX - UNANSWERED_MAX) as u64 {
            assert!(buffers.has_room());
            buffers.ask(number, 1).expect("goes on");
            buffers.answered(&reply(number + 100, 1));
        }
        assert!(!buffers.has_room());
    }

    #[test]
    fn the_reply_of_an_rpc_server_without_memory() {
        assert_eq!(NO_MEMORY[..8], 16u64.to_le_bytes());
        assert_eq!(NO_MEMORY[8..], [0; 16]);
    }

    proptest! {
        /// Whatever is asked, answered and freed: the sum is that of what was granted and not given back.
        #[test]
        fn nothing_is_forgotten_or_counted_twice(
            steps in prop::collection::vec((0..3u8, 0..5u64, 0..1000u64, 0..20usize), 0..100)
        ) {
            let (mut buffers, mut held) = (Buffers::default(), 0);
            for (kind, pointer, bytes, length) in steps {
                match kind {
                    0 if buffers.ask(0, bytes).is_ok() => held += bytes,
                    0 => {}
                    1 => held -= buffers.answered(&reply(pointer, bytes)[..length.min(16)]),
                    _ => held -= buffers.free(pointer),
                }
                prop_assert_eq!(buffers.bytes(), held);
            }
        }
    }
}
