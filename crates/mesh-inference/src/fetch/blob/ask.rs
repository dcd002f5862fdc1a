//! The asking side: which members have a file, and chunks of it.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::stream::{self, StreamExt};
use mesh_identity::{NodeId, Role, ScopeId};
use mesh_transport::{
    FrameReader, LinkFacts, PathKind, RecvStream, SendStream, Transport, TransportKind, write_message,
};
use tokio::io::AsyncReadExt;
use tokio::time::{Instant, sleep, timeout};

use super::PROTOCOL;
use super::wire::{Answer, Ask, FILES_MAX, Has, MESSAGE_BYTES_MAX};
use crate::fetch::config::Config;
use crate::fetch::digest::Sha256Hash;
use crate::fetch::index::{ChunkHash, FILE_BYTES_MAX, chunks_of, root_of};

/// Members asked at a time.
const ASKED_AT_ONCE: usize = 32;
/// How often a member that hashes is asked again.
const ASK_AGAIN: Duration = Duration::from_millis(500);

/// A member that has a file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Holder {
    pub(crate) scope: ScopeId,
    pub(crate) node: NodeId,
    /// For people.
    pub(crate) name: String,
}

/// A file that members have, and who.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) name: String,
    pub(crate) bytes: u64,
    pub(crate) sha256: Sha256Hash,
    pub(crate) root: [u8; 32],
    pub(crate) holders: Vec<Holder>,
}

/// Why a member is not asked any more.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AskFault {
    #[error("it did not answer in time")]
    Timeout,
    #[error("it has no room for another download")]
    Busy,
    #[error("it has the file no more")]
    Gone,
    #[error("the stream broke")]
    Broken,
    /// What it sent is not what it said.
    #[error("it sent {0}")]
    Lie(&'static str),
}

/// Asks every linked member close by. The files come with most holders first; whoever is still hashing is waited for only
/// while nobody has it ready.
pub(crate) async fn who_has(
    transport: &Transport,
    config: &Config,
    name: &str,
    bytes: Option<u64>,
    sha256: Option<Sha256Hash>,
) -> Vec<Found> {
    let asked: Vec<Holder> = holders(transport, config);
    let until = Instant::now() + config.index_wait;
    loop {
        let ask = Ask::Have { name: name.to_owned(), bytes, sha256: sha256.map(|hash| hash.0) };
        let answers: Vec<(Holder, Option<Answer>)> = stream::iter(asked.clone())
            .map(|holder| async {
                let answer = one(transport, config, &holder, &ask).await;
                (holder, answer)
            })
            .buffer_unordered(ASKED_AT_ONCE)
            .collect()
            .await;
        let is_hashing = answers.iter().any(|(_, answer)| matches!(answer, Some(Answer::Hashing { .. })));
        let found = gather(answers, bytes, sha256);
        if !found.is_empty() || !is_hashing || Instant::now() >= until {
            return found;
        }
        sleep(ASK_AGAIN).await;
    }
}

/// Linked members that are not far, each once, the nearest first.
fn holders(transport: &Transport, config: &Config) -> Vec<Holder> {
    let near = |link: &LinkFacts| {
        let is_lan = matches!(link.path.transport, TransportKind::Lan | TransportKind::Memory);
        let is_close = is_lan || link.path.rtt.is_some_and(|rtt| rtt <= config.member_rtt_max);
        link.peer.role == Role::Member && link.path.kind != PathKind::Relayed && is_close
    };
    let mut links: Vec<LinkFacts> = transport.links().into_iter().filter(near).collect();
    links.sort_by_key(|link| link.path.rtt.unwrap_or(Duration::MAX));
    let mut nodes = std::collections::BTreeSet::new();
    links.retain(|link| nodes.insert(link.peer.id));
    let holder = |link: LinkFacts| Holder {
        scope: link.peer.scope,
        node: link.peer.id,
        name: link.peer.name.to_string(),
    };
    links.into_iter().map(holder).collect()
}

async fn one(transport: &Transport, config: &Config, holder: &Holder, ask: &Ask) -> Option<Answer> {
    let asked = async {
        let mut channel = Channel::open(transport, holder).await.ok()?;
        channel.ask(ask).await.ok()
    };
    timeout(config.member_timeout, asked).await.ok()?
}

fn gather(
    answers: Vec<(Holder, Option<Answer>)>,
    bytes: Option<u64>,
    sha256: Option<Sha256Hash>,
) -> Vec<Found> {
    let mut found = BTreeMap::<(String, [u8; 32]), Found>::new();
    for (holder, answer) in answers {
        let Some(Answer::Have(files)) = answer else { continue };
        for file in files.into_iter().take(FILES_MAX) {
            let fits = bytes.is_none_or(|bytes| bytes == file.bytes)
                && sha256.is_none_or(|hash| hash.0 == file.sha256)
                && (1..=FILE_BYTES_MAX).contains(&file.bytes);
            if !fits {
                continue;
            }
            let Has { name, bytes, sha256, root } = file;
            let sha256 = Sha256Hash(sha256);
            // One root with two sizes or hashes is two claims; the key tells them apart.
            let claim = *blake3::hash(&[&root[..], &sha256.0, &bytes.to_le_bytes()].concat()).as_bytes();
            let found = found.entry((name.clone(), claim)).or_insert_with(|| Found {
                name,
                bytes,
                sha256,
                root,
                holders: Vec::new(),
            });
            if !found.holders.contains(&holder) {
                found.holders.push(holder.clone());
            }
        }
    }
    let mut found: Vec<Found> = found.into_values().collect();
    found.sort_by_key(|found| std::cmp::Reverse(found.holders.len()));
    found
}

/// One stream to a member.
pub(crate) struct Channel {
    send: SendStream,
    answers: Option<FrameReader<RecvStream>>,
}

impl Channel {
    pub(crate) async fn open(transport: &Transport, holder: &Holder) -> Result<Self, AskFault> {
        let stream =
            transport.open(&holder.scope, &holder.node, PROTOCOL).await.map_err(|_| AskFault::Broken)?;
        let (send, recv) = stream.split();
        Ok(Self { send, answers: Some(FrameReader::new(recv, MESSAGE_BYTES_MAX)) })
    }

    async fn ask(&mut self, ask: &Ask) -> Result<Answer, AskFault> {
        write_message(&mut self.send, ask, MESSAGE_BYTES_MAX).await.map_err(|_| AskFault::Broken)?;
        let answers = self.answers.as_mut().ok_or(AskFault::Broken)?;
        match answers.next_message().await {
            Ok(Some(Answer::Busy)) => Err(AskFault::Busy),
            Ok(Some(Answer::Gone)) => Err(AskFault::Gone),
            Ok(Some(answer)) => Ok(answer),
            Ok(None) | Err(mesh_transport::FrameError::Io(_)) => Err(AskFault::Broken),
            Err(_) => Err(AskFault::Lie("what is no message")),
        }
    }

    /// The hashes of a file's chunks, checked against its root.
    pub(crate) async fn hashes(&mut self, root: [u8; 32], bytes: u64) -> Result<Vec<ChunkHash>, AskFault> {
        let Answer::Hashes { count } = self.ask(&Ask::Hashes { root }).await? else {
            return Err(AskFault::Lie("another answer"));
        };
        if u64::from(count) != chunks_of(bytes) || bytes > FILE_BYTES_MAX {
            return Err(AskFault::Lie("a list of another length"));
        }
        let raw = self.raw(u64::from(count) * 32).await?;
        let chunks = raw.as_chunks::<32>().0.to_vec();
        if root_of(bytes, &chunks) == root {
            Ok(chunks)
        } else {
            Err(AskFault::Lie("a list of other hashes"))
        }
    }

    /// One chunk, checked against its hash.
    pub(crate) async fn chunk(
        &mut self,
        root: [u8; 32],
        index: u64,
        bytes: u64,
        hash: &ChunkHash,
    ) -> Result<Vec<u8>, AskFault> {
        let index = u32::try_from(index).map_err(|_| AskFault::Broken)?;
        let Answer::Chunk { bytes: said } = self.ask(&Ask::Chunk { root, index }).await? else {
            return Err(AskFault::Lie("another answer"));
        };
        if u64::from(said) != bytes {
            return Err(AskFault::Lie("a chunk of another length"));
        }
        let data = self.raw(bytes).await?;
        if blake3::hash(&data) == *hash { Ok(data) } else { Err(AskFault::Lie("a chunk with other bytes")) }
    }

    /// So many bytes behind a message; memory grows as they come.
    async fn raw(&mut self, bytes: u64) -> Result<Vec<u8>, AskFault> {
        // The reader holds nothing beyond the frame that it has returned.
        let mut recv = self.answers.take().ok_or(AskFault::Broken)?.into_inner();
        let mut data = Vec::new();
        (&mut recv).take(bytes).read_to_end(&mut data).await.map_err(|_| AskFault::Broken)?;
        if data.len() as u64 != bytes {
            return Err(AskFault::Broken);
        }
        self.answers = Some(FrameReader::new(recv, MESSAGE_BYTES_MAX));
        Ok(data)
    }
}
