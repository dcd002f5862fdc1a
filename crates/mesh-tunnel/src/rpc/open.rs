//! The question and the answer in front of a connection, and the list of weights behind the answer.

use std::collections::HashSet;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use mesh_transport::{FrameError, FrameReader, RecvStream, Stream, write_message};

use super::{RPC_PROTOCOL, RpcUse};
use crate::proto::rpc::wire::{
    Answer, FRAME_BYTES_MAX, Listed, Open, Piece, WEIGHTS_MAX, Wanted, bounded, digest,
};
use crate::proto::wire::RefusalCode;
use crate::tunnels::{Inner, answer_error};
use crate::weights::Known;
use crate::{OpenError, Remote, WeightId};

/// The host's side of an rpc-server at a peer, for all connections of a listener.
#[derive(Debug)]
pub(crate) struct Entrance {
    how: RpcUse,
    pub(super) known: Arc<Known>,
    /// What the peer has said that it has.
    list: Mutex<Option<List>>,
    warned: AtomicBool,
}

#[derive(Debug, Clone)]
struct List {
    digest: [u8; 32],
    /// Those that both have.
    common: Arc<HashSet<WeightId>>,
}

impl Entrance {
    pub(crate) fn new(how: RpcUse) -> Self {
        let known = how.weights.as_ref().map(|weights| Known::of(&weights.list())).unwrap_or_default();
        Self { how, known: Arc::new(known), list: Mutex::default(), warned: AtomicBool::new(false) }
    }

    /// How many weights both ends have; `None` before the first connection, or where none were asked for.
    pub(crate) fn weights_in_common(&self) -> Option<usize> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(|list| list.common.len())
    }

    fn wanted(&self) -> Wanted {
        if self.known.ids.is_empty() {
            return Wanted::Nothing;
        }
        let list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        list.as_ref().map_or(Wanted::List, |list| Wanted::Other(list.digest))
    }

    /// A stream to the rpc-server, and the weights that need not cross it.
    pub(crate) async fn ask(
        &self,
        inner: &Inner,
        remote: &Remote,
    ) -> Result<(Stream, Arc<HashSet<WeightId>>), OpenError> {
        let stream = inner.transport.open(&remote.scope, &remote.peer, RPC_PROTOCOL).await?;
        let (mut send, recv) = stream.split();
        let open = Open {
            service: remote.service.as_str().to_owned(),
            build: bounded(&self.how.build),
            weights: self.wanted(),
        };
        // A peer that refuses at once may have stopped reading: its answer says why, so it is read all the same.
        let asked = write_message(&mut send, &open, FRAME_BYTES_MAX).await;
        let mut reader = FrameReader::new(recv, FRAME_BYTES_MAX);
        match (reader.next_message::<Answer>().await, asked) {
            (Ok(Some(Answer::Accepted(listed))), Ok(())) => {
                let common = self.list(&mut reader, listed, remote).await.map_err(OpenError::Handshake)?;
                Ok((Stream::join(send, reader.into_inner()), common))
            }
            (Ok(Some(Answer::Refused { code, text })), _) => {
                Err(OpenError::Refused { code: RefusalCode::from_wire(code), text: bounded(&text) })
            }
            (answer, asked) => Err(answer_error(answer.map(|answer| answer.map(drop)), asked)),
        }
    }

    async fn list(
        &self,
        reader: &mut FrameReader<RecvStream>,
        listed: Listed,
        remote: &Remote,
    ) -> Result<Arc<HashSet<WeightId>>, FrameError> {
        let (file, count) = match listed {
            Listed::Nothing => return Ok(Arc::default()),
            Listed::Same => {
                let list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
                return list.as_ref().map(|list| Arc::clone(&list.common)).ok_or(FrameError::Malformed);
            }
            Listed::List { file, count } => (bounded(&file), count as usize),
        };
        if count > WEIGHTS_MAX {
            return Err(FrameError::Malformed);
        }
        let (mut ids, mut common) = (0, HashSet::new());
        let mut hash = blake3::Hasher::new();
        while ids < count {
            let Some(Piece(piece)) = reader.next_message().await? else { return Err(FrameError::Half) };
            ids += piece.len();
            if piece.is_empty() || ids > count {
                return Err(FrameError::Malformed);
            }
            piece.iter().for_each(|id| _ = hash.update(id));
            common.extend(piece.into_iter().map(WeightId).filter(|id| self.known.ids.contains(id)));
        }
        let list = List { digest: *hash.finalize().as_bytes(), common: Arc::new(common) };
        self.compare(&list.common, &file, remote);
        let common = Arc::clone(&list.common);
        *self.list.lock().unwrap_or_else(PoisonError::into_inner) = Some(list);
        Ok(common)
    }

    /// Says once that the peer's file is another one.
    fn compare(&self, common: &HashSet<WeightId>, peers_file: &str, remote: &Remote) {
        let own_file = self.how.weights.as_ref().map(|weights| weights.file()).unwrap_or_default();
        let (common, own) = (common.len(), self.known.ids.len());
        // Models of one family have some weights in common, such as those that are all one.
        if common * 2 < own && !self.warned.swap(true, Relaxed) {
            tracing::warn!(
                peer = %remote.peer.short(),
                own_file,
                peers_file,
                sent = own - common,
                of = own,
                "the worker's file is another one than the host's: weights are sent over the network"
            );
        } else {
            tracing::debug!(peer = %remote.peer.short(), common, own, peers_file, "weights in common");
        }
    }
}

/// What the exit says of its weights, and those that it stands by on this connection, by id.
pub(crate) async fn offer_list(
    to: &mut mesh_transport::SendStream,
    offered: Option<&Arc<dyn crate::Weights>>,
    wanted: Wanted,
) -> io::Result<Arc<[crate::Weight]>> {
    let list = match (offered, wanted) {
        (None, _) | (_, Wanted::Nothing) => Arc::from([]),
        (Some(offered), _) => offered.list(),
    };
    let digest = digest(list.iter().map(|weight| weight.id));
    let listed = match offered {
        Some(_) if wanted == Wanted::Other(digest) => Listed::Same,
        Some(offered) if wanted != Wanted::Nothing => {
            let count = u32::try_from(list.len().min(WEIGHTS_MAX)).unwrap_or(u32::MAX);
            Listed::List { file: bounded(&offered.file()), count }
        }
        _ => Listed::Nothing,
    };
    let follows = matches!(listed, Listed::List { .. });
    write_message(to, &Answer::Accepted(listed), FRAME_BYTES_MAX).await.map_err(io::Error::other)?;
    if follows {
        for piece in crate::proto::rpc::wire::pieces(&list) {
            write_message(to, &piece, FRAME_BYTES_MAX).await.map_err(io::Error::other)?;
        }
    }
    Ok(list)
}
