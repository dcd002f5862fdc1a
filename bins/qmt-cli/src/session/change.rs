//! What changes a session and shows nothing but that it did.

use mesh_control::{
    CancelTurn, Client, DecideTool, ForkSession, LabelSession, MoveSession, NameSession, PromptPart,
    PromptSession, RightView, Role, SessionView, ShareSession, ShareView, SteerSession, SuspendSession,
    Written,
};

use super::args::{DecideArgs, ShareArgs};
use super::list::asked;
use super::seen::{Asked, line};
use super::turn::{Saying, address, at_first, new_id, patiently};
use super::{begun, labels};
use crate::failure::Failure;
use crate::screen::{Screen, harmless};

fn done(screen: &Screen, written: &Written) -> Result<(), Failure> {
    screen.show(written, |_| String::new())
}

pub(super) async fn prompt(
    client: &Client,
    screen: &Screen,
    session: &SessionView,
    saying: Saying,
) -> Result<(), Failure> {
    let session = address(&session.id, &session.node);
    let request = PromptSession { session, prompt: saying.id, parts: saying.parts };
    let written = patiently(|text| screen.note(text), || client.prompt(&request)).await?;
    screen.note(&format!("prompt {} is event {}", request.prompt, written.number));
    done(screen, &written)
}

pub(super) async fn steer(
    client: &Client,
    screen: &Screen,
    session: String,
    parts: Vec<PromptPart>,
) -> Result<(), Failure> {
    done(screen, &client.steer(&SteerSession { session, turn: None, parts }).await?)
}

pub(super) async fn cancel(
    client: &Client,
    screen: &Screen,
    session: String,
    turn: Option<u32>,
) -> Result<(), Failure> {
    done(screen, &client.cancel(&CancelTurn { session, turn }).await?)
}

pub(super) async fn decide(
    client: &Client,
    screen: &Screen,
    args: DecideArgs,
    allowed: bool,
) -> Result<(), Failure> {
    let session = client.session(&args.session).await?;
    let call = waiting_call(client, &session, args.call).await?;
    let said = line(&call.name, &call.arguments);
    let session = address(&session.id, &session.node);
    let decision = DecideTool { session, turn: call.turn, call: call.call, allowed };
    let written = client.decide(&decision).await?;
    screen.note(&harmless(&format!("{} {said}", if allowed { "allowed" } else { "denied" })));
    done(screen, &written)
}

/// The call that waits for a decision, and is meant.
pub(crate) async fn waiting_call(
    client: &Client,
    session: &SessionView,
    wanted: Option<String>,
) -> Result<Asked, Failure> {
    let mut asked = asked(client, session).await?;
    if let Some(wanted) = &wanted {
        asked.retain(|asked| asked.call.starts_with(wanted.as_str()));
    }
    match (asked.len(), wanted) {
        (1, _) => Ok(asked.swap_remove(0)),
        (0, None) => Err(Failure::new("unknown_call", "no tool of this session waits for a decision")),
        (0, Some(call)) => {
            Err(Failure::new("unknown_call", format!("no call {call:?} waits for a decision"))
                .with_mend("see `qmt-cli session show`"))
        }
        _ => {
            let name = |asked: &Asked| format!("{} ({})", asked.call, line(&asked.name, &asked.arguments));
            let all = asked.iter().map(name).collect::<Vec<_>>().join(", ");
            Err(Failure::new("ambiguous", harmless(&format!("several calls wait: {all}")))
                .with_mend("name one of them"))
        }
    }
}

pub(super) async fn name(
    client: &Client,
    screen: &Screen,
    session: String,
    name: Option<String>,
) -> Result<(), Failure> {
    done(screen, &client.name_session(&NameSession { session, name }).await?)
}

pub(super) async fn label(
    client: &Client,
    screen: &Screen,
    session: String,
    words: &[String],
) -> Result<(), Failure> {
    let view = client.session(&session).await?;
    let mut all = view.labels;
    for word in words {
        match word.strip_suffix('-').filter(|_| !word.contains('=')) {
            Some(key) => drop(all.remove(key)),
            None => all.extend(labels(std::slice::from_ref(word))?),
        }
    }
    let session = address(&view.id, &view.node);
    done(screen, &client.label_session(&LabelSession { session, labels: all }).await?)
}

pub(super) async fn share(client: &Client, screen: &Screen, args: ShareArgs) -> Result<(), Failure> {
    let view = client.session(&args.session).await?;
    let right = match args.right.as_str() {
        "watch" => Some(RightView::Watch),
        "prompt" => Some(RightView::Prompt),
        "own" => Some(RightView::Own),
        _ => None,
    };
    let role = if args.role == "client" { Role::Client } else { Role::Member };
    share_view(client, screen, view, ShareTo { node: args.with, scope: args.scope, role, right }).await
}

/// With whom to share, and how far.
pub(crate) struct ShareTo {
    pub(crate) node: Option<String>,
    pub(crate) scope: Option<String>,
    /// Of the scope.
    pub(crate) role: Role,
    /// None ends it.
    pub(crate) right: Option<RightView>,
}

/// Shares a session or a board as it is, and with one more.
pub(crate) async fn share_view(
    client: &Client,
    screen: &Screen,
    view: SessionView,
    to: ShareTo,
) -> Result<(), Failure> {
    let known = view.shares.ok_or_else(|| {
        Failure::new("not_allowed", "this node is not told with whom it is shared")
            .with_mend("share it at the node that hosts it, as its owner")
    })?;
    let with = match to.node {
        Some(node) => (Some(resolved_node(client, &node).await?), None, None),
        None => {
            let scope = resolved_scope(client, &to.scope.unwrap_or_default()).await?;
            (None, Some(scope), Some(to.role))
        }
    };
    let is_other = |share: &ShareView| (&share.node, &share.scope, share.role) != (&with.0, &with.1, with.2);
    let mut shares: Vec<ShareView> = known.into_iter().filter(is_other).collect();
    let (node, scope, role) = with;
    shares.extend(to.right.map(|right| ShareView { node, scope, role, right }));
    let session = address(&view.id, &view.node);
    done(screen, &client.share_session(&ShareSession { session, shares }).await?)
}

/// The id of a node that the mesh knows; any other text is left to the session's host to judge.
async fn resolved_node(client: &Client, text: &str) -> Result<String, Failure> {
    let nodes = client.nodes().await?;
    let mut ids: Vec<String> = match nodes.iter().find(|node| node.id == text) {
        Some(node) => vec![node.id.clone()],
        None => {
            let fits = |node: &&mesh_control::NodeView| node.name == text || node.id.starts_with(text);
            nodes.iter().filter(fits).map(|node| node.id.clone()).collect()
        }
    };
    ids.sort_unstable();
    ids.dedup();
    match ids.len() {
        0 => Ok(text.to_owned()),
        1 => Ok(ids.swap_remove(0)),
        _ => Err(Failure::new("ambiguous", format!("{text:?} may be {}", ids.join(", ")))
            .with_mend("write more of the id")),
    }
}

async fn resolved_scope(client: &Client, text: &str) -> Result<String, Failure> {
    let scopes = client.status().await?.scopes;
    let fits = |scope: &&mesh_control::ScopeStatus| scope.name == text || scope.id.starts_with(text);
    let mut ids: Vec<String> = scopes.iter().filter(fits).map(|scope| scope.id.clone()).collect();
    match ids.len() {
        1 => Ok(ids.swap_remove(0)),
        0 => Err(Failure::new("unknown_scope", format!("this node is in no mesh {text:?}"))
            .with_mend("see `qmt-cli status`")),
        _ => Err(Failure::new("ambiguous", format!("{text:?} may be {}", ids.join(", ")))
            .with_mend("write more of the id")),
    }
}

pub(super) async fn fork(
    client: &Client,
    screen: &Screen,
    session: String,
    at: Option<u64>,
    name: Option<String>,
) -> Result<(), Failure> {
    let fork = ForkSession { session, at, id: new_id(), name };
    let session = at_first(|text| screen.note(text), || client.fork_session(&fork)).await?;
    screen.note(&begun(&session));
    screen.show(&session, |session| session.id.clone())
}

pub(super) async fn suspend(
    client: &Client,
    screen: &Screen,
    session: String,
    why: &[String],
) -> Result<(), Failure> {
    let why = (!why.is_empty()).then(|| why.join(" "));
    done(screen, &client.suspend(&SuspendSession { session, why }).await?)
}

pub(super) async fn resume(client: &Client, screen: &Screen, session: &str) -> Result<(), Failure> {
    done(screen, &client.resume(session).await?)
}

pub(crate) async fn archive(client: &Client, screen: &Screen, session: &str) -> Result<(), Failure> {
    done(screen, &client.archive(session).await?)
}

pub(super) async fn hand_over(
    client: &Client,
    screen: &Screen,
    session: String,
    to: String,
) -> Result<(), Failure> {
    let session = client.move_session(&MoveSession { session, to }).await?;
    screen.note(&begun(&session));
    screen.show(&session, |_| String::new())
}
