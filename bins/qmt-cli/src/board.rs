//! Boards: `board`.

use std::collections::HashMap;

use clap::{Args, Subcommand};
use mesh_control::{
    Client, CreateBoard, EndReason, EventsQuery, Followed, Happened, PostOnBoard, PromptPart, RightView,
    Role, SessionEvent, SessionItem, SessionPage, SessionQuery, SessionView, ShareView,
};
use uuid::Uuid;

use crate::chat;
use crate::failure::Failure;
use crate::screen::{Screen, harmless};
use crate::session::change::{self, ShareTo};
use crate::session::list::{ago, now_ms};
use crate::session::teller::said;
use crate::session::turn::{address, at_first, ended, interrupts, new_id, patiently};
use crate::table::Table;

#[derive(Debug, Clone, Subcommand)]
pub(crate) enum BoardCommand {
    /// List boards, the newest first.
    List {
        /// Of another node: its name, its id or the beginning of it.
        #[arg(long, conflicts_with = "all")]
        node: Option<String>,
        /// Of all nodes that can be reached.
        #[arg(long)]
        all: bool,
    },
    /// Make a board at this node; its id alone goes to standard output.
    New {
        /// What it is called.
        name: String,
        #[command(flatten)]
        with: With,
        /// The id of the board, a UUID: the same command again is the same board [default: a new one].
        #[arg(long, value_name = "UUID")]
        id: Option<Uuid>,
    },
    /// Post on a board.
    Post {
        /// The board.
        board: String,
        /// What to post, in one or several words; a - among them stands for standard input.
        #[arg(required = true)]
        text: Vec<String>,
        /// The id of the post: the same command again is the same post [default: a new one].
        #[arg(long, value_name = "ID")]
        id: Option<String>,
    },
    /// Show what stands on a board.
    Read {
        /// The board.
        board: String,
        /// Only what came after this number.
        #[arg(long, value_name = "N", default_value_t = 0)]
        after: u64,
        /// Then what comes; Ctrl-C ends it.
        #[arg(long)]
        follow: bool,
    },
    /// Share a board, or end that.
    Share {
        /// The board.
        board: String,
        #[command(flatten)]
        with: With,
    },
    /// End a board; it can still be read.
    Archive {
        /// The board.
        board: String,
    },
}

#[derive(Debug, Clone, Args)]
pub(crate) struct With {
    /// With this node: its name, its id or the beginning of it.
    #[arg(long, value_name = "NODE")]
    with: Option<String>,
    /// With a role of this mesh: its name or id.
    #[arg(long, visible_alias = "mesh", value_name = "MESH", conflicts_with = "with")]
    scope: Option<String>,
    /// Which role: members, or clients and members.
    #[arg(long, value_parser = ["member", "client"], default_value = "member", requires = "scope")]
    role: String,
    /// How far: read, post (and read), own (everything), or none to end it.
    #[arg(long, value_parser = ["read", "post", "own", "none"], default_value = "post")]
    right: String,
}

impl With {
    fn right(&self) -> Option<RightView> {
        match self.right.as_str() {
            "read" => Some(RightView::Watch),
            "post" => Some(RightView::Prompt),
            "own" => Some(RightView::Own),
            _ => None,
        }
    }

    fn role(&self) -> Role {
        if self.role == "client" { Role::Client } else { Role::Member }
    }

    fn is_given(&self) -> bool {
        self.with.is_some() || self.scope.is_some()
    }

    /// Of a new board.
    fn shares(self) -> Vec<ShareView> {
        let (right, role, is_given) = (self.right(), self.role(), self.is_given());
        let role = self.scope.is_some().then_some(role);
        let share = right.map(|right| ShareView { node: self.with, scope: self.scope, role, right });
        share.into_iter().filter(|_| is_given).collect()
    }
}

pub(crate) async fn board(client: &Client, screen: &Screen, command: BoardCommand) -> Result<(), Failure> {
    use BoardCommand as B;
    match command {
        B::List { node, all } => list(client, screen, node, all).await,
        B::New { name, with, id } => new(client, screen, name, with, id).await,
        B::Post { board, text, id } => post(client, screen, board, &text, id).await,
        B::Read { board, after, follow } => read(client, screen, &board, after, follow).await,
        B::Share { board, with } => {
            if !with.is_given() {
                return Err(Failure::usage("with whom? --with NODE or --scope MESH says so"));
            }
            let view = client.board(&board).await?;
            let (right, role) = (with.right(), with.role());
            change::share_view(
                client,
                screen,
                view,
                ShareTo { node: with.with, scope: with.scope, role, right },
            )
            .await
        }
        B::Archive { board } => {
            let view = client.board(&board).await?;
            change::archive(client, screen, &address(&view.id, &view.node)).await
        }
    }
}

async fn list(client: &Client, screen: &Screen, node: Option<String>, all: bool) -> Result<(), Failure> {
    let query = SessionQuery { node, all, limit: Some(1000), ..SessionQuery::default() };
    let page = client.boards(&query).await?;
    if page.sessions.is_empty() {
        let elsewhere = if all { "" } else { "; --all looks at other nodes too" };
        screen.note(&format!("no boards{elsewhere}; `qmt-cli board new NAME` makes one"));
    }
    for node in &page.unreached {
        let name = if node.node_name.is_empty() { &node.node } else { &node.node_name };
        screen.note(&harmless(&format!("{name} did not answer: {}", node.why)));
    }
    screen.show(&page, table)
}

fn table(page: &SessionPage) -> String {
    if page.sessions.is_empty() {
        return String::new();
    }
    let now = now_ms();
    let mut table = Table::new(&["BOARD", "NODE", "STATE", "NUMBER", "LAST", "ID"]);
    for board in &page.sessions {
        let is_over = board.state == mesh_control::SessionState::Archived;
        table.row([
            board.name.clone().unwrap_or_default(),
            node_of(board).to_owned(),
            if is_over { "archived".to_owned() } else { "open".to_owned() },
            board.last.to_string(),
            ago(board.updated_ms, now),
            board.id.clone(),
        ]);
    }
    table.to_string()
}

fn node_of(board: &SessionView) -> &str {
    if board.node_name.is_empty() { &board.node } else { &board.node_name }
}

async fn new(
    client: &Client,
    screen: &Screen,
    name: String,
    with: With,
    id: Option<Uuid>,
) -> Result<(), Failure> {
    let is_shared = with.is_given();
    let new = CreateBoard { id: id.map_or_else(new_id, |id| id.to_string()), name, shares: with.shares() };
    let board = at_first(|text| screen.note(text), || client.create_board(&new)).await?;
    screen.note(&harmless(&format!("board {} at {}", new.name, node_of(&board))));
    if !is_shared {
        screen.note("nobody else can see it; `qmt-cli board share` changes that");
    }
    screen.show(&board, |board| board.id.clone())
}

async fn post(
    client: &Client,
    screen: &Screen,
    board: String,
    words: &[String],
    id: Option<String>,
) -> Result<(), Failure> {
    let parts = vec![PromptPart::Text { text: chat::words(words)? }];
    // Its id, since its name may be given to another one while the post waits.
    let view = at_first(|text| screen.note(text), || client.board(&board)).await?;
    let post = PostOnBoard { board: address(&view.id, &view.node), post: id.unwrap_or_else(new_id), parts };
    let written = patiently(|text| screen.note(text), || client.post_on_board(&post)).await?;
    screen.note(&format!("posted as [{}]", written.number));
    screen.show(&written, |_| String::new())
}

async fn read(
    client: &Client,
    screen: &Screen,
    board: &str,
    after: u64,
    follow: bool,
) -> Result<(), Failure> {
    let view = at_first(|text| screen.note(text), || client.board(board)).await?;
    let session = address(&view.id, &view.node);
    let reader = Reader { client, screen, session: &session, names: names(client).await? };
    if !follow {
        return reader.past(after).await;
    }
    let mut interrupts = interrupts()?;
    let mut following = client.follow_session(&session, after);
    loop {
        let followed = tokio::select! {
            followed = following.next() => followed?,
            _ = interrupts.recv() => {
                return Err(Failure::shown().with_exit(crate::failure::INTERRUPTED));
            }
        };
        match followed {
            Followed::Event(event) => reader.tell(&event).await?,
            Followed::Lost(why) => screen.note(&format!("{why}; waiting for the board")),
            Followed::End(end) if end.end == EndReason::Archived => return Ok(()),
            Followed::End(end) => return Err(ended(end.end, end.why.as_deref())),
        }
    }
}

/// What nodes are called, by their ids.
async fn names(client: &Client) -> Result<HashMap<String, String>, Failure> {
    let own = client.status().await?;
    let others = client.nodes().await?.into_iter().map(|node| (node.id, node.name));
    Ok(others.chain([(own.node_id, own.node_name)]).filter(|(_, name)| !name.is_empty()).collect())
}

struct Reader<'a> {
    client: &'a Client,
    screen: &'a Screen,
    session: &'a str,
    names: HashMap<String, String>,
}

impl Reader<'_> {
    async fn past(&self, after: u64) -> Result<(), Failure> {
        let query = EventsQuery { session: self.session.to_owned(), after, past: true };
        let mut events = self.client.session_events(&query).await?;
        while let Some(item) = events.next().await? {
            match item {
                SessionItem::Event(event) => self.tell(&event).await?,
                SessionItem::End(end) if matches!(end.end, EndReason::Past | EndReason::Archived) => {
                    return Ok(());
                }
                SessionItem::End(end) => return Err(ended(end.end, end.why.as_deref())),
            }
        }
        Err(Failure::new("broken", "the posts broke off before their end"))
    }

    /// A post; what else stands in the log is for `session attach`.
    async fn tell(&self, event: &SessionEvent) -> Result<(), Failure> {
        let Happened::Posted { by, agent, parts, .. } = event.happened() else { return Ok(()) };
        if self.screen.is_json() {
            let line = serde_json::to_string(event)
                .map_err(|error| Failure::new("internal", format!("the event is no JSON: {error}")))?;
            return self.screen.print(&format!("{line}\n"));
        }
        let node = self.names.get(&by.node).cloned().unwrap_or_else(|| crate::nodes::short(&by.node));
        let who = agent.map_or_else(|| node.clone(), |agent| format!("{agent}@{node}"));
        // Further lines are indented, so that none of them looks like somebody else's post.
        let text = said(self.client, self.session, &parts).await.trim_end().replace('\n', "\n    ");
        self.screen.print(&format!("[{}] {}\n", event.number, harmless(&format!("{who}: {text}"))))
    }
}
