//! Reading a session of another node over as many links as it takes.

use mesh_identity::NodeId;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::Config;
use super::call::{RETRY_FIRST, RETRY_MAX, RemoteError, RemoteHost};
use super::frame::{Broken, parse, write};
use crate::event::Event;
use crate::ids::{EventNumber, SessionId};
use crate::proto::wire::{Ask, Beat, Code, Tell};

/// Events that were read and not yet asked for; beyond it the host is read no faster.
const READ_MAX: usize = 64;

/// A reader of a session at its host: each event once, in order, whatever happens to links and nodes. Dropped, it ends.
#[derive(Debug)]
pub struct RemoteFollowing {
    node: NodeId,
    events: mpsc::Receiver<Result<Event, RemoteError>>,
    at: EventNumber,
    /// Why it ended.
    ended: Option<RemoteError>,
    _reading: AbortOnDropHandle<()>,
}

impl RemoteFollowing {
    pub(super) fn new(host: RemoteHost, session: SessionId, after: EventNumber) -> Self {
        let (found, events) = mpsc::channel(READ_MAX);
        let node = host.node;
        let reading =
            Reading { host, session, at: after, found, left: None, lost: None, contact: Contact::NotYet };
        let reading = AbortOnDropHandle::new(tokio::spawn(reading.run()));
        Self { node, events, at: after, ended: None, _reading: reading }
    }

    /// The next event, once there is one. Cancel safe: an event is lost by no dropped future.
    ///
    /// # Errors
    /// [`RemoteError`], once and then always: the host was out of reach for longer than [`Config::grace`], or it refuses, or the
    /// session is this node's own by now ([`RemoteError::Moved`]).
    pub async fn next(&mut self) -> Result<Event, RemoteError> {
        if let Some(error) = &self.ended {
            return Err(error.clone());
        }
        match self.events.recv().await {
            Some(Ok(event)) => {
                self.at = event.number;
                Ok(event)
            }
            Some(Err(error)) => Err(self.ended.insert(error).clone()),
            None => {
                let why = "its reader ended unexpectedly".to_owned();
                Err(self.ended.insert(RemoteError::Lost { node: self.node, why }).clone())
            }
        }
    }

    /// The number of the last event that was returned.
    pub fn at(&self) -> EventNumber {
        self.at
    }
}

/// The task behind it.
struct Reading {
    host: RemoteHost,
    session: SessionId,
    /// The last event that was handed on.
    at: EventNumber,
    found: mpsc::Sender<Result<Event, RemoteError>>,
    /// The host before, until the new one lets us read: it may have the session back.
    left: Option<RemoteHost>,
    /// Since when nothing is heard of the host.
    lost: Option<Instant>,
    contact: Contact,
}

/// Whether the host was heard of: what is told in the log, once each time.
#[derive(Clone, Copy, PartialEq)]
enum Contact {
    NotYet,
    Heard,
    Broken,
}

/// How one stream ended.
enum Ended {
    /// Nobody wants more.
    Unwanted,
    /// The host says no more.
    Refused(RemoteError),
    /// It may go on over another stream.
    Lost(RemoteError),
    /// Another node is its host.
    Moved(NodeId),
}

impl Reading {
    fn heard(&mut self) {
        (self.lost, self.left) = (None, None);
        if std::mem::replace(&mut self.contact, Contact::Heard) == Contact::Broken {
            tracing::info!(node = %self.host.node.short(), session = %self.session, "Stream reconnected successfully");
        }
    }

    fn broke(&mut self, why: &RemoteError) {
        if self.contact == Contact::Heard {
            self.contact = Contact::Broken;
            tracing::info!(node = %self.host.node.short(), session = %self.session, %why, "Transient disconnect detected");
        }
    }

    async fn run(mut self) {
        let mut wait = RETRY_FIRST;
        loop {
            let before = self.at;
            let error = match Box::pin(self.read()).await {
                Ended::Unwanted => return,
                Ended::Refused(error) => return drop(self.found.send(Err(error)).await),
                Ended::Lost(error) => error,
                Ended::Moved(to) if to == self.host.transport.node_id() => {
                    return drop(self.found.send(Err(RemoteError::Moved { to })).await);
                }
                Ended::Moved(to) => {
                    let new = self.host.at(to);
                    self.left = Some(std::mem::replace(&mut self.host, new));
                    continue;
                }
            };
            self.broke(&error);
            let since = *self.lost.get_or_insert_with(Instant::now);
            if since.elapsed() + wait >= self.host.config.grace {
                let after = self.host.config.grace;
                tracing::warn!(node = %self.host.node.short(), session = %self.session, ?after, "Stream reconnection timeout");
                return drop(self.found.send(Err(error)).await);
            }
            if self.at > before {
                wait = RETRY_FIRST;
            }
            tokio::select! {
                () = self.found.closed() => return,
                () = tokio::time::sleep(wait) => {}
            }
            wait = (wait * 2).min(RETRY_MAX);
        }
    }

    /// Reads over one stream for as long as it lasts.
    async fn read(&mut self) -> Ended {
        match self.read_stream().await {
            Ok(ended) => ended,
            Err(error @ RemoteError::NotServed { .. }) => Ended::Refused(error),
            Err(error) => Ended::Lost(error),
        }
    }

    async fn read_stream(&mut self) -> Result<Ended, RemoteError> {
        let host = self.host.clone();
        let Config { first_event, idle, beat, grace, .. } = *host.config;
        let since = *self.lost.get_or_insert_with(Instant::now);
        let (mut send, mut frames) = host.open(since + grace).await?;
        let lost = |broken: Broken| host.broken(&broken);
        let ask = Ask::Attach { session: self.session, after: self.at };
        write(&mut send, &ask, idle).await.map_err(lost)?;
        let (mut deadline, mut said) = (Instant::now() + first_event, Instant::now());
        let mut waiting: Option<Event> = None;
        loop {
            let found = self.found.clone();
            let frame = tokio::select! {
                biased;
                () = self.found.closed() => return Ok(Ended::Unwanted),
                () = tokio::time::sleep_until(said + beat) => {
                    write(&mut send, &Beat { read: self.at }, idle).await.map_err(lost)?;
                    said = Instant::now();
                    continue;
                }
                place = found.reserve(), if waiting.is_some() => {
                    let Ok(place) = place else { return Ok(Ended::Unwanted) };
                    if let Some(event) = waiting.take() {
                        self.at = event.number;
                        place.send(Ok(event));
                    }
                    // While the reader was busy nothing was read, so nothing could be heard.
                    deadline = Instant::now() + idle;
                    continue;
                }
                frame = frames.next(), if waiting.is_none() => frame,
                () = tokio::time::sleep_until(deadline), if waiting.is_none() => {
                    return Err(lost(Broken::Silent(idle)));
                }
            };
            let frame = frame.map_err(lost)?.ok_or_else(|| lost(Broken::Ended))?;
            deadline = Instant::now() + idle;
            match parse(&frame).map_err(lost)? {
                Tell::Beat => self.heard(),
                Tell::Event { event } => {
                    self.heard();
                    if event.number == self.at.next() {
                        waiting = Some(event);
                    } else if event.number > self.at {
                        return Err(lost(Broken::Malformed));
                    }
                }
                // It is on its way, perhaps to one that had it before; or the host before has it back.
                Tell::Refused { to: Some(to), code: Code::Moved, .. } if to == host.transport.node_id() => {
                    return Ok(Ended::Moved(to));
                }
                Tell::Refused {
                    code: code @ (Code::NoSuchSession | Code::NoSuchEvent | Code::Moved),
                    text,
                    ..
                } if self.left.is_some() => {
                    if let Some(before) = self.left.take() {
                        self.host = before;
                    }
                    return Ok(Ended::Lost(RemoteError::Refused { code, text }));
                }
                Tell::Refused { to: Some(to), code: Code::Moved, .. } if to != host.node => {
                    return Ok(Ended::Moved(to));
                }
                Tell::Refused { code, text, .. } => {
                    let error = RemoteError::Refused { code, text };
                    return Ok(if code.is_transient() { Ended::Lost(error) } else { Ended::Refused(error) });
                }
                other => return Err(host.unexpected(&other)),
            }
        }
    }
}
