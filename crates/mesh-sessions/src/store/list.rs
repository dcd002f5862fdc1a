//! Finding sessions by what is known of them.

use std::collections::BTreeMap;
use std::fmt;

use sqlx::sqlite::SqliteRow;
use sqlx::{QueryBuilder, Row, Sqlite};

use super::Store;
use super::effects::right;
use super::error::{ReadError, StorageError};
use super::place::number_of;
use super::read::session_id;
use crate::event::{Party, Right};
use crate::ids::{AgentId, EventNumber, SessionId, SessionName, TurnNumber};
use mesh_identity::{NodeId, Role};

/// The most sessions of a page.
pub const LIST_MAX: u32 = 1000;

/// Where a session stands, as its log says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum State {
    /// Nobody has spoken in it yet.
    Created,
    /// A fork in which nobody has spoken yet.
    Forked,
    /// It goes on.
    Active,
    /// It rests.
    Suspended,
    /// It is over.
    Archived,
}

impl State {
    const ALL: [Self; 5] = [Self::Created, Self::Forked, Self::Active, Self::Suspended, Self::Archived];

    /// The word in the table.
    pub fn word(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Forked => "forked",
            Self::Active => "active",
            Self::Suspended => "suspended",
            Self::Archived => "archived",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// What a log is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A conversation with an agent.
    Session,
    /// A board: what people and agents wrote on it.
    Board,
}

/// Which sessions to list: those for which all that is given holds.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Sessions with agents, or boards.
    pub kind: Option<Kind>,
    /// The agent.
    pub agent: Option<AgentId>,
    /// The name.
    pub name: Option<SessionName>,
    /// A label that it bears.
    pub label: Option<(String, String)>,
    /// Where it stands.
    pub state: Option<State>,
    /// Whether a turn is open or a prompt waits for one; that is so for suspended sessions too.
    pub unfinished: bool,
    /// Who is to be told of it: only sessions that this party may watch. None for all.
    pub seen_by: Option<Party>,
    /// Only sessions that came into this store before that one: the last of the page before.
    pub before: Option<SessionId>,
    /// How many at most, up to [`LIST_MAX`]; none for as many.
    pub limit: Option<u32>,
}

/// A session as it is listed.
#[derive(Debug, Clone, PartialEq)]
pub struct Listed {
    /// Its id.
    pub session: SessionId,
    /// What it is a fork of, and where it was cut; none when it is no fork.
    pub parent: Option<(SessionId, EventNumber)>,
    /// The agent.
    pub agent: AgentId,
    /// The owner.
    pub owner: Party,
    /// The name.
    pub name: Option<SessionName>,
    /// The labels.
    pub labels: BTreeMap<String, String>,
    /// Where it stands.
    pub state: State,
    /// The open turn.
    pub turn: Option<TurnNumber>,
    /// Prompts without a turn.
    pub waiting: u32,
    /// The epoch.
    pub epoch: u64,
    /// The node to which it was handed over last; none when it never was.
    pub host: Option<NodeId>,
    /// Its last event.
    pub last: EventNumber,
    /// When it was made, by its host's clock, in milliseconds since 1970.
    pub created_ms: u64,
    /// When its last event was written.
    pub updated_ms: u64,
}

/// What somebody wrote stands for no session, or for several.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum ResolveError {
    /// None has this id, name or beginning of an id.
    #[error("there is no session {0}")]
    Unknown(String),
    /// Several have.
    #[error("{text} may be {}; say more of its id", join(sessions))]
    Ambiguous {
        /// What was written.
        text: String,
        /// The first few that it may mean.
        sessions: Vec<SessionId>,
    },
    /// The file failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

fn join(sessions: &[SessionId]) -> String {
    sessions.iter().map(ToString::to_string).collect::<Vec<_>>().join(" or ")
}

/// Sessions that an ambiguous text names.
const AMBIGUOUS_MAX: usize = 8;

const COLUMNS: &str = "SELECT s.session, p.session, s.cut, s.agent, s.owner, s.name, s.labels, s.state, s.turn, s.waiting, \
     s.epoch, s.host, l.place, l.at, f.at FROM sessions s LEFT JOIN sessions p ON p.row = s.parent \
     JOIN events l ON l.place = (SELECT place FROM events WHERE place < ((s.row + 1) << 35) ORDER BY place DESC LIMIT 1) \
     JOIN events f ON f.place = (SELECT place FROM events WHERE place > (s.row << 35) ORDER BY place LIMIT 1) \
     WHERE s.hidden = 0";

impl Store {
    /// The sessions that the filter lets through, those first that came into this store last.
    ///
    /// # Errors
    /// [`StorageError`].
    pub async fn list(&self, filter: Filter) -> Result<Vec<Listed>, StorageError> {
        let mut query = QueryBuilder::<Sqlite>::new(COLUMNS);
        push_kind(&mut query, filter.kind);
        if let Some(agent) = &filter.agent {
            query.push(" AND s.agent = ").push_bind(agent.as_str().to_owned());
        }
        if let Some(name) = &filter.name {
            query.push(" AND s.name = ").push_bind(name.as_str().to_owned());
        }
        if let Some((key, value)) = filter.label {
            query.push(" AND EXISTS (SELECT 1 FROM json_each(s.labels) j WHERE j.key = ").push_bind(key);
            query.push(" AND j.value = ").push_bind(value).push(")");
        }
        if let Some(state) = filter.state {
            query.push(" AND s.state = ").push_bind(state.word());
        }
        if filter.unfinished {
            query.push(" AND (s.turn IS NOT NULL OR s.waiting > 0)");
        }
        if let Some(party) = &filter.seen_by {
            query.push(" AND ");
            push_level(&mut query, party);
            query.push(" > 0");
        }
        if let Some(before) = filter.before {
            query.push(" AND s.row < (SELECT row FROM sessions WHERE session = ");
            query.push_bind(before.as_bytes().to_vec()).push(")");
        }
        query.push(" ORDER BY s.row DESC LIMIT ");
        query.push_bind(filter.limit.map_or(LIST_MAX, |limit| limit.min(LIST_MAX)));
        let rows = query.build().fetch_all(&self.inner.read).await?;
        rows.iter().map(listed).collect::<Result<_, _>>().inspect_err(|error| self.note(error))
    }

    /// A session as it is listed.
    ///
    /// # Errors
    /// [`ReadError`].
    pub async fn session(&self, session: SessionId) -> Result<Listed, ReadError> {
        let mut query = QueryBuilder::<Sqlite>::new(COLUMNS);
        query.push(" AND s.session = ").push_bind(session.as_bytes().to_vec());
        let row = query.build().fetch_optional(&self.inner.read).await?;
        Ok(listed(&row.ok_or(ReadError::NoSuchSession(session))?)?)
    }

    /// What the party may do with a session, as its log says; none when it is not to know of it, or it is not here.
    ///
    /// # Errors
    /// [`StorageError`].
    pub async fn right_of(&self, session: SessionId, party: &Party) -> Result<Option<Right>, StorageError> {
        let mut query = QueryBuilder::<Sqlite>::new("SELECT ");
        push_level(&mut query, party);
        query.push(" FROM sessions s WHERE s.hidden = 0 AND s.session = ");
        query.push_bind(session.as_bytes().to_vec());
        let row = query.build().fetch_optional(&self.inner.read).await?;
        let level: Option<i64> = row.map(|row| row.try_get(0)).transpose()?;
        Ok(level.and_then(right))
    }

    /// The session of this id, of this name, or whose id alone begins so, of those of a kind that the party may watch.
    ///
    /// # Errors
    /// [`ResolveError`].
    pub async fn resolve(
        &self,
        party: &Party,
        text: &str,
        kind: Option<Kind>,
    ) -> Result<SessionId, ResolveError> {
        if let Ok(session) = text.parse::<SessionId>() {
            let right = self.right_of(session, party).await?;
            return right.map(|_| session).ok_or_else(|| ResolveError::Unknown(text.to_owned()));
        }
        let mut query =
            QueryBuilder::<Sqlite>::new("SELECT s.session FROM sessions s WHERE s.hidden = 0 AND ");
        push_level(&mut query, party);
        query.push(" > 0");
        push_kind(&mut query, kind);
        query.push(" AND (s.name = ");
        query.push_bind(text.to_owned());
        if let Some((low, high)) = range(text) {
            query
                .push(" OR s.session BETWEEN ")
                .push_bind(low.to_vec())
                .push(" AND ")
                .push_bind(high.to_vec());
        }
        query.push(") LIMIT ").push_bind(i64::try_from(AMBIGUOUS_MAX).unwrap_or(1));
        let rows = query.build().fetch_all(&self.inner.read).await.map_err(StorageError::from)?;
        let session = |row: &SqliteRow| session_id(row.try_get(0)?);
        let sessions: Vec<SessionId> = rows.iter().map(session).collect::<Result<_, StorageError>>()?;
        match sessions.as_slice() {
            [] => Err(ResolveError::Unknown(text.to_owned())),
            [session] => Ok(*session),
            _ => Err(ResolveError::Ambiguous { text: text.to_owned(), sessions }),
        }
    }
}

fn push_kind(query: &mut QueryBuilder<Sqlite>, kind: Option<Kind>) {
    let Some(kind) = kind else { return };
    let compared = if kind == Kind::Board { " AND s.agent = " } else { " AND s.agent <> " };
    query.push(compared).push_bind(String::from(AgentId::board()));
}

/// What the party may do with the session `s`, as a number of the table of shares; 0 for nothing.
pub(super) fn push_level(query: &mut QueryBuilder<Sqlite>, party: &Party) {
    let Some(scope) = party.scope else {
        query.push("3");
        return;
    };
    let (node, scope) = (party.node.to_string(), scope.to_string());
    query.push("CASE WHEN json_extract(s.owner, '$.node') = ").push_bind(node.clone());
    query.push(" AND json_extract(s.owner, '$.scope') = ").push_bind(scope.clone());
    query.push(
        " THEN 3 ELSE (SELECT coalesce(max(h.level), 0) FROM shares h WHERE h.session = s.row AND (h.node = ",
    );
    query.push_bind(node);
    let roles = match party.role {
        Some(Role::Member) => "'member', 'client'",
        Some(Role::Client) => "'client'",
        None => "",
    };
    query.push(" OR h.scope = ").push_bind(scope).push(" AND h.role IN (").push(roles).push("))) END");
}

/// The first and the last id that begins with these digits; none when they are no digits of an id.
fn range(prefix: &str) -> Option<([u8; 16], [u8; 16])> {
    let digits: Option<Vec<u8>> =
        prefix.chars().filter(|c| *c != '-').map(|c| u8::try_from(c.to_digit(16)?).ok()).collect();
    let digits = digits.filter(|digits| (1..=32).contains(&digits.len()))?;
    let id = |rest: u8| {
        let digit = |at: usize| digits.get(at).copied().unwrap_or(rest);
        std::array::from_fn(|at| digit(at * 2) << 4 | digit(at * 2 + 1))
    };
    Some((id(0), id(15)))
}

fn listed(row: &SqliteRow) -> Result<Listed, StorageError> {
    let session = session_id(row.try_get(0)?)?;
    let damaged = |what: &str| StorageError::damaged(format!("the {what} of session {session}"));
    let cut: i64 = row.try_get(2)?;
    let parent: Option<Vec<u8>> = row.try_get(1)?;
    let parent = parent.map(session_id).transpose()?;
    let (agent, owner, name): (String, &str, Option<String>) =
        (row.try_get(3)?, row.try_get(4)?, row.try_get(5)?);
    let (labels, state, host): (&str, &str, Option<Vec<u8>>) =
        (row.try_get(6)?, row.try_get(7)?, row.try_get(11)?);
    let host =
        host.map(|host| host.try_into().ok().and_then(|host: [u8; 32]| NodeId::from_bytes(&host).ok()));
    let state = State::ALL.into_iter().find(|known| known.word() == state);
    let number = |at: usize| row.try_get::<i64, _>(at).map(i64::cast_unsigned);
    Ok(Listed {
        session,
        parent: parent.map(|parent| (parent, EventNumber(cut.cast_unsigned()))),
        agent: agent.try_into().map_err(|_| damaged("agent"))?,
        owner: serde_json::from_str(owner).map_err(|_| damaged("owner"))?,
        name: name.map(SessionName::try_from).transpose().map_err(|_| damaged("name"))?,
        labels: serde_json::from_str(labels).map_err(|_| damaged("labels"))?,
        state: state.ok_or_else(|| damaged("state"))?,
        turn: row.try_get::<Option<u32>, _>(8)?.map(TurnNumber),
        waiting: row.try_get(9)?,
        epoch: number(10)?,
        host: host.map(|host| host.ok_or_else(|| damaged("host"))).transpose()?,
        last: EventNumber(number_of(row.try_get(12)?)),
        updated_ms: number(13)?,
        created_ms: number(14)?,
    })
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn a_prefix_is_the_range_of_ids_that_begin_so() {
        let (low, high) = range("0197a5c2-b").unwrap_or_default();
        assert_eq!(
            (low[..5].to_vec(), high[..5].to_vec()),
            (vec![1, 0x97, 0xa5, 0xc2, 0xb0], vec![1, 0x97, 0xa5, 0xc2, 0xbf])
        );
        assert_eq!((low[5..].to_vec(), high[5..].to_vec()), (vec![0; 11], vec![255; 11]));
        assert!(range("").is_none() && range("xyz").is_none() && range(&"0".repeat(33)).is_none());
    }
}
