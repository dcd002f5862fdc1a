//! Agents as the configuration describes them.

use std::collections::BTreeMap;
use std::path::PathBuf;

use mesh_inference::backend::Secret;
pub use mesh_sessions::agent::OpenTo;
use mesh_sessions::ids::AgentId;
use mesh_sessions::policy::Policy;
use mesh_sessions::proto::{Interrupted, Limits};

/// An agent of this node.
#[derive(Debug, Clone)]
pub struct AgentEntry {
    /// What it is called by.
    pub id: AgentId,
    /// What it is good for, in a sentence.
    pub description: String,
    /// What its model is told first.
    pub instructions: Instructions,
    /// Its model's name.
    pub model: String,
    /// The node whose model it is, by name or id; none for whatever routing prefers.
    pub peer: Option<String>,
    /// The most tokens of one answer.
    pub max_tokens: Option<u32>,
    /// How bold its model is.
    pub temperature: Option<f32>,
    /// The model's window, from which on what was said is summarized.
    pub context_tokens: Option<u64>,
    /// Its tools, those of servers apart.
    pub tools: Vec<BuiltIn>,
    /// Which tools run for whom.
    pub policy: Policy,
    /// Bounds of its turns.
    pub limits: Limits,
    /// What becomes of tools that may have run when the node went down.
    pub interrupted: Interrupted,
    /// Who may begin sessions with it, beside the node's own user.
    pub open_to: OpenTo,
    /// Where its tools work; none for a folder of its own in the node's home.
    pub workspace: Option<PathBuf>,
    /// Whether what its tools start is kept to the workspace and the system's folders.
    pub confined: bool,
    /// What it may read beside them.
    pub read: Vec<PathBuf>,
    /// What it may write to beside the workspace.
    pub write: Vec<PathBuf>,
    /// MCP servers whose tools it has.
    pub servers: Vec<ServerEntry>,
}

impl AgentEntry {
    /// An agent with this model and nothing else.
    pub fn new(id: AgentId, model: impl Into<String>) -> Self {
        Self {
            id,
            description: String::new(),
            instructions: Instructions::Text(String::new()),
            model: model.into(),
            peer: None,
            max_tokens: None,
            temperature: None,
            context_tokens: None,
            tools: Vec::new(),
            policy: Policy::default(),
            limits: Limits::default(),
            interrupted: Interrupted::default(),
            open_to: OpenTo::default(),
            workspace: None,
            confined: true,
            read: Vec::new(),
            write: Vec::new(),
            servers: Vec::new(),
        }
    }
}

/// What a model is told first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Instructions {
    /// The text itself.
    Text(String),
    /// A file with it, read when the node starts.
    File(PathBuf),
}

/// A tool that every node has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BuiltIn {
    /// Lines of a file.
    ReadFile,
    /// A whole file.
    WriteFile,
    /// A text in a file.
    Edit,
    /// Folders.
    List,
    /// Lines by a regular expression.
    Search,
    /// Command lines.
    Shell,
    /// Tasks for other agents.
    Delegate,
    /// What stands on shared boards.
    BoardRead,
    /// Posts on them.
    BoardPost,
}

impl BuiltIn {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::ReadFile,
        Self::WriteFile,
        Self::Edit,
        Self::List,
        Self::Search,
        Self::Shell,
        Self::Delegate,
        Self::BoardRead,
        Self::BoardPost,
    ];

    /// What models call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::ReadFile => "read_file",
            Self::WriteFile => "write_file",
            Self::Edit => "edit",
            Self::List => "list",
            Self::Search => "search",
            Self::Shell => "shell",
            Self::Delegate => "delegate",
            Self::BoardRead => "board_read",
            Self::BoardPost => "board_post",
        }
    }

    /// Whether it works in a folder of its agent.
    pub fn needs_folder(self) -> bool {
        !matches!(self, Self::Delegate | Self::BoardRead | Self::BoardPost)
    }

    /// The tool of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|tool| tool.name() == name)
    }
}

/// An MCP server.
#[derive(Debug, Clone)]
pub struct ServerEntry {
    /// What its tools' names begin with.
    pub name: String,
    /// Where it is.
    pub at: ServerAt,
    /// Whether its word that a tool only reads is believed.
    pub trusts_hints: bool,
}

/// Where an MCP server is.
#[derive(Debug, Clone)]
pub enum ServerAt {
    /// A program, spoken to over its standard input and output.
    Program(ProgramEntry),
    /// An address, spoken to over HTTP.
    Web {
        /// Such as `https://example.org/mcp`.
        url: String,
        /// Sent with every request, keys apart.
        headers: BTreeMap<String, String>,
        /// The key that is sent as a bearer token.
        token: Option<Secret>,
    },
}

/// A program of an MCP server.
#[derive(Debug, Clone)]
pub struct ProgramEntry {
    /// The program: a path, or a name that is looked for in `PATH`.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<String>,
    /// Variables with values of their own.
    pub environment: BTreeMap<String, String>,
    /// Variables of the node that it gets too, and that nobody else is to see.
    pub secrets: Vec<(String, Secret)>,
    /// Whether it is kept to the workspace and the system's folders.
    pub confined: bool,
}

impl ServerEntry {
    /// The values that nobody else is to see.
    pub fn secrets(&self) -> impl Iterator<Item = &Secret> {
        let (passed, token) = match &self.at {
            ServerAt::Program(program) => (program.secrets.as_slice(), None),
            ServerAt::Web { token, .. } => (&[][..], token.as_ref()),
        };
        passed.iter().map(|(_, secret)| secret).chain(token)
    }
}
