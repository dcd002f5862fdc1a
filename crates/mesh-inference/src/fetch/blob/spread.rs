//! One file from several members at once.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::stream::{FuturesUnordered, StreamExt};
use mesh_transport::Transport;
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

use super::ask::{AskFault, Channel, Found, Holder};
use crate::fetch::config::Config;
use crate::fetch::index::{ChunkHash, chunk_bytes};
use crate::fetch::part::Part;
use crate::fetch::progress::Meter;
use crate::fetch::stats::Counters;

/// Times that one stream waits for a place at a busy member.
const BUSY_MAX: u32 = 5;

/// What came of asking the members.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Spread {
    /// Every chunk is here, and each is what the root stands for.
    Whole,
    /// Nobody is left who could give the rest.
    Rest,
    /// What was here before is of another file than theirs.
    Another,
}

struct Work {
    queue: Mutex<Queue>,
    changed: Notify,
}

struct Queue {
    waiting: VecDeque<u64>,
    /// Chunks that are asked for now.
    out: usize,
}

/// One member's part in it.
struct Source<'a> {
    holder: &'a Holder,
    /// It lied, or fell silent: none of its streams goes on.
    dropped: AtomicBool,
    streams: AtomicUsize,
}

/// Fetches what is missing in `part` from all holders of `found` at once. Cancel safe: chunks that came are kept.
///
/// # Errors
/// When the disk fails.
pub(crate) async fn spread(
    transport: &Transport,
    config: &Config,
    part: &Arc<Part>,
    found: &Found,
    meter: &Meter,
) -> io::Result<Spread> {
    let Some((list, good)) = hashes(transport, config, found, meter).await else { return Ok(Spread::Rest) };
    let list = Arc::new(list);
    if !part.fits(&list) {
        return Ok(Spread::Another);
    }
    let work =
        Work { queue: Mutex::new(Queue { waiting: part.missing().into(), out: 0 }), changed: Notify::new() };
    let sources: Vec<Source<'_>> = found.holders[good..]
        .iter()
        .take(config.members_max)
        .map(|holder| Source { holder, dropped: AtomicBool::new(false), streams: AtomicUsize::new(0) })
        .collect();
    tell(meter, &sources);
    let one = Fetching { transport, config, part, found, list: &list, work: &work, meter, sources: &sources };
    let mut streams: FuturesUnordered<_> = sources
        .iter()
        .flat_map(|source| std::iter::repeat_n(source, config.streams_per_member.max(1)))
        .map(|source| one.stream(source))
        .collect();
    while let Some(ended) = streams.next().await {
        ended?;
    }
    Ok(if part.is_whole() { Spread::Whole } else { Spread::Rest })
}

/// The list of hashes from the first holder that has the right one, and which that is: those before it are no good.
async fn hashes(
    transport: &Transport,
    config: &Config,
    found: &Found,
    meter: &Meter,
) -> Option<(Vec<ChunkHash>, usize)> {
    for (at, holder) in found.holders.iter().enumerate() {
        let asked = async { Channel::open(transport, holder).await?.hashes(found.root, found.bytes).await };
        match timeout(config.member_timeout, asked).await.unwrap_or(Err(AskFault::Timeout)) {
            Ok(list) => return Some((list, at)),
            Err(fault) => report(holder, &fault, meter),
        }
    }
    None
}

struct Fetching<'a> {
    transport: &'a Transport,
    config: &'a Config,
    part: &'a Arc<Part>,
    found: &'a Found,
    list: &'a Arc<Vec<ChunkHash>>,
    work: &'a Work,
    meter: &'a Meter,
    sources: &'a [Source<'a>],
}

impl Fetching<'_> {
    /// One stream of one member: chunk after chunk until there are none, or the member is no good.
    async fn stream(&self, source: &Source<'_>) -> io::Result<()> {
        let (mut channel, mut busy) = (None, 0);
        source.streams.fetch_add(1, Relaxed);
        while let Some(taken) = self.work.take().await {
            if source.dropped.load(Relaxed) {
                break;
            }
            let fetched = timeout(self.config.member_timeout, self.chunk(source, &mut channel, taken.index));
            match fetched.await.unwrap_or(Err(AskFault::Timeout)) {
                Ok(data) => {
                    let bytes = data.len() as u64;
                    let (part, index) = (self.part.clone(), taken.index);
                    let written = tokio::task::spawn_blocking(move || part.write(index, &data));
                    written.await.unwrap_or_else(|panic| Err(io::Error::other(panic)))?;
                    taken.done();
                    Counters::add(&self.meter.counters.from_members, bytes);
                    self.meter.came(bytes);
                    busy = 0;
                }
                Err(AskFault::Busy) if busy < BUSY_MAX => {
                    drop(taken);
                    (channel, busy) = (None, busy + 1);
                    sleep(crate::fetch::jittered(self.config.backoff)).await;
                }
                // Its other streams may have a place.
                Err(AskFault::Busy) if source.streams.load(Relaxed) > 1 => break,
                Err(fault) => {
                    drop(taken);
                    if !source.dropped.swap(true, Relaxed) {
                        report(source.holder, &fault, self.meter);
                        tell(self.meter, self.sources);
                    }
                    break;
                }
            }
        }
        source.streams.fetch_sub(1, Relaxed);
        Ok(())
    }

    async fn chunk(
        &self,
        source: &Source<'_>,
        channel: &mut Option<Channel>,
        index: u64,
    ) -> Result<Vec<u8>, AskFault> {
        let at = usize::try_from(index).map_err(|_| AskFault::Gone)?;
        let hash = self.list.get(at).ok_or(AskFault::Gone)?;
        // Taken out while it is used: one that a fault or a timeout left half read is not used again.
        let mut open = match channel.take() {
            Some(open) => open,
            None => Channel::open(self.transport, source.holder).await?,
        };
        let data = open.chunk(self.found.root, index, chunk_bytes(self.found.bytes, index), hash).await?;
        *channel = Some(open);
        Ok(data)
    }
}

/// A chunk that a stream has taken on itself; dropped, it is there for others.
struct Taken<'a> {
    work: &'a Work,
    index: u64,
    is_done: bool,
}

impl Work {
    /// The next chunk; `None` once all have come. Waits while the last ones are with others, who may give them back.
    async fn take(&self) -> Option<Taken<'_>> {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            {
                let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(index) = queue.waiting.pop_front() {
                    queue.out += 1;
                    return Some(Taken { work: self, index, is_done: false });
                }
                if queue.out == 0 {
                    return None;
                }
            }
            changed.await;
        }
    }
}

impl Taken<'_> {
    fn done(mut self) {
        self.is_done = true;
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        {
            let mut queue = self.work.queue.lock().unwrap_or_else(PoisonError::into_inner);
            queue.out -= 1;
            if !self.is_done {
                queue.waiting.push_front(self.index);
            }
        }
        self.work.changed.notify_waiters();
    }
}

fn tell(meter: &Meter, sources: &[Source<'_>]) {
    let names: Vec<&str> = sources
        .iter()
        .filter(|source| !source.dropped.load(Relaxed))
        .map(|source| source.holder.name.as_str())
        .collect();
    match names[..] {
        [] => {}
        [one] => meter.from(one.to_owned()),
        _ => meter.from(format!("{} members", names.len())),
    }
}

fn report(holder: &Holder, fault: &AskFault, meter: &Meter) {
    if matches!(fault, AskFault::Lie(_)) {
        Counters::add(&meter.counters.lies, 1);
    }
    let (peer, name) = (holder.node.short(), &holder.name);
    match fault {
        AskFault::Lie(_) => {
            tracing::warn!(%peer, name, %fault, "a member's file is not what it says; the others go on")
        }
        _ => tracing::debug!(%peer, name, %fault, "a member gives no more of a file"),
    }
}
