//! What is kept of an answer while it passes, in case its backend dies.

use tokio::sync::OwnedSemaphorePermit;

use super::events::Held;
use super::told::Told;
use crate::gateway::body::BodyMemory;

/// Bytes of an answer collected before they are read. Reading is not free, and most answers end well; the text in them is
/// a fiftieth of it, so they are not kept as they are either.
const RAW_MAX: usize = 16 * 1024;

/// The part of an answer that its caller has, within the memory that request bodies share.
pub(crate) struct Kept {
    pub(crate) held: Held,
    raw: Vec<u8>,
    told: Told,
    memory: BodyMemory,
    share: OwnedSemaphorePermit,
    shared_bytes: usize,
}

impl Kept {
    /// None when there is no memory left for it.
    pub(crate) fn new(memory: BodyMemory) -> Option<Self> {
        let share = memory.share(RAW_MAX).ok()??;
        let (held, raw, told) = (Held::default(), Vec::new(), Told::default());
        Some(Self { held, raw, told, memory, share, shared_bytes: RAW_MAX })
    }

    /// Notes whole events that go to the caller. False when the answer is not to be kept any longer.
    pub(crate) fn note(&mut self, sent: &[u8]) -> bool {
        self.raw.extend_from_slice(sent);
        self.raw.len() < RAW_MAX || self.fold()
    }

    /// What the caller was told so far.
    pub(crate) fn told(&mut self) -> &mut Told {
        self.fold();
        &mut self.told
    }

    fn fold(&mut self) -> bool {
        self.told.hear(&self.raw);
        self.raw.clear();
        self.told.strange.is_none() && self.has_room()
    }

    /// Takes more of the shared memory as the text grows, by doubling.
    fn has_room(&mut self) -> bool {
        let needed = RAW_MAX + self.told.bytes();
        if needed > self.shared_bytes {
            let Ok(Some(more)) = self.memory.share(needed) else { return false };
            self.share.merge(more);
            self.shared_bytes += needed;
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(text: &str) -> Vec<u8> {
        format!("data: {{\"choices\":[{{\"delta\":{{\"content\":\"{text}\"}}}}]}}\n\n").into_bytes()
    }

    #[test]
    fn long_answers_are_kept_as_text() {
        let mut kept = Kept::new(BodyMemory::new(1024 * 1024)).unwrap();
        for _ in 0..2000 {
            assert!(kept.note(&chunk("abcd")));
            assert!(kept.raw.len() < RAW_MAX + 100);
        }
        assert_eq!(kept.told().text, "abcd".repeat(2000));
    }

    #[test]
    fn an_answer_is_given_up_when_memory_is_full_or_it_calls_tools() {
        assert!(Kept::new(BodyMemory::new(1024)).is_none());
        let mut kept = Kept::new(BodyMemory::new(64 * 1024)).unwrap();
        let long = "x".repeat(8 * 1024);
        let noted = (0..20).take_while(|_| kept.note(&chunk(&long))).count();
        assert!((2..12).contains(&noted), "{noted}");
        let mut kept = Kept::new(BodyMemory::new(1024 * 1024)).unwrap();
        assert!(kept.note(b"data: {\"choices\":[{\"delta\":{\"tool_calls\":[{}]}}]}\n\n"));
        assert_eq!(kept.told().strange, Some("a call of a tool"));
        assert!(!kept.fold());
    }
}
