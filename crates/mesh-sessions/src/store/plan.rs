//! One transaction in the making: what each job of a group adds to it, or why it adds nothing.

use std::collections::HashMap;
use std::sync::Arc;

use mesh_identity::NodeId;
use tokio::sync::oneshot;

use super::effects::{blobs, effects, party};
use super::error::{AppendError, CreateError, ForkError, StorageError};
use super::head::Head;
use super::place::{EVENTS_MAX, place};
use super::statement::{EventRow, Statement, Value};
use super::writer::Writer;
use super::{Checksum, EVENT_BYTES_MAX, FORKS_MAX, read};
use crate::event::{Body, Event};
use crate::ids::{EventNumber, PromptId, SessionId};

/// The events that were written, with their numbers.
pub(super) type Written = Vec<Arc<Event>>;

/// A body with its JSON.
#[derive(Debug)]
pub(super) struct Draft {
    pub(super) body: Body,
    pub(super) json: String,
}

impl Draft {
    /// # Errors
    /// When one is too long.
    pub(super) fn all(bodies: Vec<Body>) -> Result<Vec<Self>, AppendError> {
        let draft = |body: Body| {
            let json = serde_json::to_string(&body).map_err(|_| AppendError::Misplaced("it is no JSON"))?;
            if json.len() > EVENT_BYTES_MAX {
                let (size, bound) = (json.len() as u64, EVENT_BYTES_MAX as u64);
                return Err(AppendError::TooLarge { what: "an event in bytes", size, bound });
            }
            Ok(Self { body, json })
        };
        bodies.into_iter().map(draft).collect()
    }
}

/// What a writer is asked to add to a log.
#[derive(Debug)]
pub(super) enum Addition {
    /// More events.
    Append { epoch: u64, after: Option<EventNumber>, reply: Reply<AppendError> },
    /// A new session.
    Create { reply: Reply<CreateError> },
    /// A new session that starts as the other was.
    Fork { parent: SessionId, cut: EventNumber, reply: Reply<ForkError> },
}

pub(super) type Reply<E> = oneshot::Sender<Result<Written, E>>;

/// An addition, with its events.
#[derive(Debug)]
pub(super) struct WriteJob {
    pub(super) session: SessionId,
    pub(super) at_ms: i64,
    pub(super) drafts: Vec<Draft>,
    pub(super) addition: Addition,
}

/// A job that is part of the transaction.
pub(super) struct Admitted {
    pub(super) session: SessionId,
    pub(super) events: Written,
    pub(super) bytes: usize,
    pub(super) addition: Addition,
}

impl Admitted {
    pub(super) fn acknowledge(self, result: Result<(), StorageError>) {
        let result = result.map(|()| self.events);
        // Whoever asked may have gone.
        let _ = match self.addition {
            Addition::Append { reply, .. } => reply.send(result.map_err(Into::into)).is_ok(),
            Addition::Create { reply } => reply.send(result.map_err(Into::into)).is_ok(),
            Addition::Fork { reply, .. } => reply.send(result.map_err(Into::into)).is_ok(),
        };
    }
}

/// The transaction.
#[derive(Default)]
pub(super) struct Plan {
    pub(super) rows: Vec<EventRow>,
    pub(super) statements: Vec<Statement>,
    pub(super) admitted: Vec<Admitted>,
    /// The heads as they are after it.
    pub(super) heads: HashMap<SessionId, Head>,
    pub(super) bytes: usize,
    /// Prompts that it writes.
    prompts: HashMap<Prompt, EventNumber>,
}

/// The row of its session, its id, whose it is.
type Prompt = (i64, PromptId, NodeId);

/// From where a session's prompts are looked for: a row, and the last number that counts.
type Lookout = Option<(i64, u64)>;

impl Plan {
    /// Takes the job in, or answers it with its refusal.
    pub(super) async fn admit(&mut self, writer: &mut Writer, job: WriteJob) {
        let WriteJob { session, at_ms, drafts, addition } = job;
        let bytes = drafts.iter().map(|draft| draft.json.len()).sum();
        let written = match addition {
            Addition::Append { epoch, after, reply } => {
                match self.append(writer, session, (epoch, after), at_ms, drafts).await {
                    Ok(events) => Some((events, Addition::Append { epoch, after, reply })),
                    Err(error) => {
                        let _ = reply.send(Err(error));
                        None
                    }
                }
            }
            Addition::Create { reply } => match self.create(writer, session, at_ms, drafts).await {
                Ok(events) => Some((events, Addition::Create { reply })),
                Err(error) => {
                    let _ = reply.send(Err(error));
                    None
                }
            },
            Addition::Fork { parent, cut, reply } => {
                match self.fork(writer, session, (parent, cut), at_ms, drafts).await {
                    Ok(events) => Some((events, Addition::Fork { parent, cut, reply })),
                    Err(error) => {
                        let _ = reply.send(Err(error));
                        None
                    }
                }
            }
        };
        if let Some((events, addition)) = written {
            self.bytes += bytes;
            self.admitted.push(Admitted { session, events, bytes, addition });
        }
    }

    /// Takes the job in when what is in memory says that it can be written, and gives it back otherwise. `heads` are those before
    /// this transaction, the newest first.
    pub(super) fn join(
        &mut self,
        heads: [&HashMap<SessionId, Head>; 2],
        job: WriteJob,
    ) -> Result<(), WriteJob> {
        let known = heads.into_iter().find_map(|heads| heads.get(&job.session));
        let Some(head) = self.heads.get(&job.session).or(known) else { return Err(job) };
        let Addition::Append { epoch, after, .. } = &job.addition else { return Err(job) };
        let follows = *epoch == head.epoch && after.is_none_or(|after| after.0 == head.last);
        let has_room = head.last.saturating_add(job.drafts.len() as u64) <= EVENTS_MAX;
        let is_plain = job.drafts.iter().all(|draft| is_plain(&draft.body));
        if !follows || !has_room || !is_plain || head.is_archived {
            return Err(job);
        }
        let head = head.clone();
        let WriteJob { session, at_ms, drafts, addition } = job;
        let bytes = drafts.iter().map(|draft| draft.json.len()).sum();
        let events = self.write(session, head, at_ms, drafts);
        self.bytes += bytes;
        self.admitted.push(Admitted { session, events, bytes, addition });
        Ok(())
    }

    async fn append(
        &mut self,
        writer: &mut Writer,
        session: SessionId,
        (epoch, after): (u64, Option<EventNumber>),
        at_ms: i64,
        drafts: Vec<Draft>,
    ) -> Result<Written, AppendError> {
        let head = self.head(writer, session).await?.ok_or(AppendError::NoSuchSession(session))?;
        if epoch != head.epoch {
            return Err(AppendError::HandedOver { epoch: head.epoch });
        }
        if after.is_some_and(|after| after.0 != head.last) {
            return Err(AppendError::Conflict { last: EventNumber(head.last) });
        }
        if drafts.iter().any(|draft| matches!(draft.body, Body::Created { .. } | Body::Forked { .. })) {
            return Err(AppendError::Misplaced("a session is made once"));
        }
        let lookout = Some((head.row, EVENTS_MAX));
        let head = self.check(writer, head, lookout, &drafts).await?;
        Ok(self.write(session, head, at_ms, drafts))
    }

    async fn create(
        &mut self,
        writer: &mut Writer,
        session: SessionId,
        at_ms: i64,
        drafts: Vec<Draft>,
    ) -> Result<Written, CreateError> {
        let events = |error| CreateError::Events(Box::new(error));
        let Some(Draft { body: Body::Created { agent, owner }, .. }) = drafts.first() else {
            return Err(events(AppendError::Misplaced("a session starts with being created")));
        };
        let row = writer.next_row()?;
        let values = [
            Value::Number(row),
            Value::Bytes(session.as_bytes().to_vec()),
            Value::Text(agent.as_str().to_owned()),
            party(owner),
        ];
        let sql = "INSERT INTO sessions (row, session, agent, owner, state) VALUES (?, ?, ?, ?, 'created')";
        let made = Statement::new(sql, values);
        let head =
            Head { row, depth: 0, last: 0, checksum: Checksum::start(session), epoch: 1, is_archived: false };
        let head = self.check(writer, head, None, &drafts).await.map_err(events)?;
        if self.is_taken(writer, session).await? {
            return Err(CreateError::Exists(session));
        }
        self.statements.push(made);
        Ok(self.write(session, head, at_ms, drafts))
    }

    async fn fork(
        &mut self,
        writer: &mut Writer,
        session: SessionId,
        (parent, cut): (SessionId, EventNumber),
        at_ms: i64,
        drafts: Vec<Draft>,
    ) -> Result<Written, ForkError> {
        let from = self.head(writer, parent).await?.ok_or(ForkError::NoSuchSession(parent))?;
        if !(1..=from.last).contains(&cut.0) {
            return Err(ForkError::NoSuchEvent { cut, last: EventNumber(from.last) });
        }
        if from.depth >= FORKS_MAX {
            return Err(ForkError::TooDeep { depth: from.depth });
        }
        let events = |error| ForkError::Events(Box::new(error));
        let Some(Draft { body: Body::Forked { owner, .. }, .. }) = drafts.first() else {
            return Err(events(AppendError::Misplaced("a fork starts with being forked")));
        };
        let row = writer.next_row()?;
        let values = [
            Value::Number(row),
            Value::Bytes(session.as_bytes().to_vec()),
            Value::Number(cut.0.cast_signed()),
            Value::Number(i64::from(from.depth) + 1),
            party(owner),
            Value::Number(from.row),
        ];
        let sql = "INSERT INTO sessions (row, session, parent, cut, depth, agent, owner, state) \
             SELECT ?, ?, row, ?, ?, agent, ?, 'forked' FROM sessions WHERE row = ?";
        let made = Statement::new(sql, values);
        let head = Head {
            row,
            depth: from.depth + 1,
            last: cut.0,
            checksum: Checksum::start(session),
            epoch: 1,
            is_archived: false,
        };
        let lookout = Some((from.row, cut.0));
        let head = self.check(writer, head, lookout, &drafts).await.map_err(events)?;
        if self.is_taken(writer, session).await? {
            return Err(ForkError::Exists(session));
        }
        self.statements.push(made);
        Ok(self.write(session, head, at_ms, drafts))
    }

    async fn head(&mut self, writer: &mut Writer, session: SessionId) -> Result<Option<Head>, StorageError> {
        match self.heads.get(&session) {
            Some(head) => Ok(Some(head.clone())),
            None => writer.head(session).await,
        }
    }

    /// Whether there is a session of this id. To be asked last: if not, the id counts as taken from now on.
    async fn is_taken(&mut self, writer: &mut Writer, session: SessionId) -> Result<bool, StorageError> {
        if self.heads.contains_key(&session) || writer.heads.contains_key(&session) {
            return Ok(true);
        }
        writer.take_id(session).await
    }

    /// Whether all of it may be written after `head`; returns what the head is then, its checksum and last apart.
    async fn check(
        &mut self,
        writer: &mut Writer,
        mut head: Head,
        lookout: Lookout,
        drafts: &[Draft],
    ) -> Result<Head, AppendError> {
        let size = head.last.saturating_add(drafts.len() as u64);
        if size > EVENTS_MAX {
            return Err(AppendError::TooLarge { what: "a session in events", size, bound: EVENTS_MAX });
        }
        let mut prompts: HashMap<Prompt, EventNumber> = HashMap::new();
        for (draft, number) in drafts.iter().zip(head.last + 1..) {
            if head.is_archived {
                return Err(AppendError::Archived);
            }
            match &draft.body {
                Body::Archived { .. } => head.is_archived = true,
                Body::HandedOver { epoch, .. } if *epoch <= head.epoch => {
                    return Err(AppendError::Misplaced("an epoch is greater than those before"));
                }
                Body::HandedOver { epoch, .. } => head.epoch = *epoch,
                Body::Prompted { prompt, by, .. } | Body::Posted { post: prompt, by, .. } => {
                    let key = (head.row, prompt.clone(), by.node);
                    let seen = match self.prompts.get(&key).or_else(|| prompts.get(&key)) {
                        Some(at) => Some(*at),
                        None => match lookout {
                            Some(lookout) => {
                                read::prompt_at(&mut writer.connection, lookout, (prompt, by.node))
                                    .await
                                    .map_err(StorageError::from)?
                            }
                            None => None,
                        },
                    };
                    if let Some(at) = seen {
                        return Err(AppendError::PromptSeen { prompt: prompt.clone(), at });
                    }
                    prompts.insert(key, EventNumber(number));
                }
                _ => {}
            }
            for blob in blobs(&draft.body) {
                if !writer.has_blob(blob).await? {
                    return Err(AppendError::NoSuchBlob(blob));
                }
            }
        }
        self.prompts.extend(prompts);
        Ok(head)
    }

    fn write(&mut self, session: SessionId, mut head: Head, at_ms: i64, drafts: Vec<Draft>) -> Written {
        let write = |Draft { body, json }: Draft| {
            head.last += 1;
            head.checksum = head.checksum.next(head.last, at_ms, &json);
            // The row of a new session is complete already.
            if !matches!(body, Body::Created { .. } | Body::Forked { .. }) {
                self.statements.extend(effects(head.row, head.last, at_ms, &body));
            }
            let checksum = head.checksum.to_vec();
            self.rows.push(EventRow { place: place(head.row, head.last), at_ms, body: json, checksum });
            Arc::new(Event { number: EventNumber(head.last), at_ms: at_ms.cast_unsigned(), body })
        };
        let events = drafts.into_iter().map(write).collect();
        self.heads.insert(session, head);
        events
    }
}

/// Whether nothing has to be looked up before the event can be written, and nothing changes for those after it.
fn is_plain(body: &Body) -> bool {
    let is_special = matches!(
        body,
        Body::Created { .. }
            | Body::Forked { .. }
            | Body::Prompted { .. }
            | Body::Archived { .. }
            | Body::HandedOver { .. }
    );
    !is_special && blobs(body).is_empty()
}
