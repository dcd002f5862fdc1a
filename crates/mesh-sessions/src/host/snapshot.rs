//! How a session stands, as the store keeps it between openings.

use serde::{Deserialize, Serialize};

use crate::ids::{EventNumber, SessionId};
use crate::proto::Session;
use crate::store::{ReadError, ReadLimit, Store};

/// What this build writes. Another version is not read: the events are.
const VERSION: u32 = 2;

#[derive(Serialize)]
struct Written<'a> {
    version: u32,
    session: &'a Session,
}

#[derive(Deserialize)]
struct Version {
    version: u32,
}

#[derive(Deserialize)]
struct Read {
    session: Session,
}

/// A session out of the store.
pub(super) struct Loaded {
    pub(super) session: Session,
    /// The event of the snapshot that it came from.
    pub(super) snapshot_at: EventNumber,
}

pub(super) fn encode(session: &Session) -> Option<Vec<u8>> {
    serde_json::to_vec(&Written { version: VERSION, session }).ok()
}

fn decode(bytes: &[u8], at: EventNumber) -> Option<Session> {
    let Version { version } = serde_json::from_slice(bytes).ok()?;
    let read: Option<Read> = (version == VERSION).then(|| serde_json::from_slice(bytes).ok()).flatten();
    read.map(|read| read.session).filter(|session| session.last() == at)
}

/// The session as its whole log leaves it.
pub(super) async fn load(store: &Store, id: SessionId) -> Result<Loaded, ReadError> {
    let found = store.snapshot(id, EventNumber(u64::MAX)).await?;
    let found = found.and_then(|(at, bytes)| decode(&bytes, at));
    let mut session = found.unwrap_or_default();
    let snapshot_at = session.last();
    loop {
        let events = store.read(id, session.last(), ReadLimit::default()).await?;
        if events.is_empty() {
            return Ok(Loaded { session, snapshot_at });
        }
        events.iter().for_each(|event| session.apply(event));
    }
}
