//! The commands about sessions and their arguments.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use uuid::Uuid;

/// What becomes of tools that an agent may only use when somebody allows it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Tools {
    /// The terminal is asked; without one the turn waits for `session allow` or `session deny`.
    #[default]
    Ask,
    /// All are allowed.
    Allow,
    /// None is.
    Deny,
}

/// SESSION is an id, the beginning of one, or a name, each with @NODE behind it for a session of another node.
#[derive(Debug, Subcommand)]
pub(crate) enum SessionCommand {
    /// List sessions, the newest first.
    List(ListArgs),
    /// Begin a session; its id alone goes to standard output.
    Create(CreateArgs),
    /// Show a session: where it stands, with whom it is shared, what it waits for.
    Show {
        /// The session.
        session: String,
    },
    /// Show a session's events, past and live, until it ends or Ctrl-C; with --json one event a line.
    Attach {
        /// The session.
        session: String,
        /// Begin after the event of this number.
        #[arg(long, value_name = "N", default_value_t = 0)]
        after: u64,
        /// End with what there is.
        #[arg(long)]
        past: bool,
    },
    /// Prompt a session's agent, and show its turn.
    Prompt(PromptArgs),
    /// Say something in the middle of a turn, for the agent to hear before its next step.
    Steer {
        /// The session.
        session: String,
        /// What to say; a - among the words stands for standard input.
        #[arg(required = true)]
        text: Vec<String>,
    },
    /// End the turn that is under way, and drop the prompts that wait.
    Cancel {
        /// The session.
        session: String,
        /// End this turn only.
        #[arg(long, value_name = "N")]
        turn: Option<u32>,
    },
    /// Allow a tool that an agent asked for.
    Allow(DecideArgs),
    /// Do not allow a tool that an agent asked for.
    Deny(DecideArgs),
    /// Name a session, or take its name away.
    Name {
        /// The session.
        session: String,
        /// What it is to be called; none takes its name away.
        name: Option<String>,
    },
    /// Label a session.
    Label {
        /// The session.
        session: String,
        /// KEY=VALUE sets a label, KEY- takes one away.
        #[arg(required = true, value_name = "KEY=VALUE|KEY-")]
        labels: Vec<String>,
    },
    /// Share a session with a node, or with everybody of a role in a mesh.
    Share(ShareArgs),
    /// Begin a session that is another one up to an event; its id alone goes to standard output.
    Fork {
        /// The session.
        session: String,
        /// The last event that counts [default: the last one].
        #[arg(long, value_name = "N")]
        at: Option<u64>,
        /// What the fork is to be called.
        #[arg(long)]
        name: Option<String>,
    },
    /// Have a session rest: its turn goes on when it is resumed.
    Suspend {
        /// The session.
        session: String,
        /// Why, for others.
        why: Vec<String>,
    },
    /// Have a session go on.
    Resume {
        /// The session.
        session: String,
    },
    /// End a session: from then on it can be read and forked.
    Archive {
        /// The session.
        session: String,
    },
    /// Write a session as lines of JSON.
    Export {
        /// The session.
        session: String,
        /// To this file, which must not be there yet [default: standard output].
        #[arg(long, short)]
        output: Option<PathBuf>,
    },
    /// Take in a session that was exported.
    Import {
        /// The file, or - for standard input.
        file: PathBuf,
    },
    /// Find where words were said.
    Search {
        /// Words that all stand in one prompt, answer or name.
        #[arg(required = true)]
        words: Vec<String>,
        /// At another node: its name, its id or the beginning of it.
        #[arg(long)]
        node: Option<String>,
        /// How many at most.
        #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=200))]
        limit: u32,
    },
    /// Hand a session over to another node.
    Move {
        /// The session.
        session: String,
        /// The node: its name, its id or the beginning of it.
        node: String,
    },
}

#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    /// Of this agent.
    #[arg(long)]
    pub(crate) agent: Option<String>,
    /// Of this name.
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// With this label.
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) label: Option<String>,
    /// In this state.
    #[arg(long, value_parser = ["created", "forked", "active", "suspended", "archived"])]
    pub(crate) state: Option<String>,
    /// Only those that have work left.
    #[arg(long)]
    pub(crate) unfinished: bool,
    /// Of another node: its name, its id or the beginning of it.
    #[arg(long, conflicts_with = "all")]
    pub(crate) node: Option<String>,
    /// Of all nodes that can be reached.
    #[arg(long)]
    pub(crate) all: bool,
    /// The page that a longer list names at its end.
    #[arg(long, value_name = "PAGE", conflicts_with = "all")]
    pub(crate) before: Option<String>,
    /// How many of each node.
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) limit: u32,
}

#[derive(Debug, Args)]
pub(crate) struct CreateArgs {
    /// The agent; without @NODE this node's, else the best of its peers'.
    #[arg(value_name = "AGENT[@NODE]")]
    pub(crate) agent: String,
    /// What the session is to be called.
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// A label of the session; may be repeated.
    #[arg(long = "label", value_name = "KEY=VALUE")]
    pub(crate) labels: Vec<String>,
    /// What the node must be labelled with, when none is named, such as gpu; may be repeated.
    #[arg(long = "capability", value_name = "LABEL")]
    pub(crate) capabilities: Vec<String>,
    /// The id of the session, a UUID: the same command again is the same session [default: a new one].
    #[arg(long, value_name = "UUID")]
    pub(crate) id: Option<Uuid>,
}

#[derive(Debug, Args)]
pub(crate) struct PromptArgs {
    /// The session.
    pub(crate) session: String,
    /// What to say, in one or several words; a - among them stands for standard input.
    pub(crate) prompt: Vec<String>,
    /// An image to show: PNG, JPEG, GIF or WebP; may be repeated.
    #[arg(long = "image", value_name = "FILE")]
    pub(crate) images: Vec<PathBuf>,
    /// The id of the prompt: the same command again is the same prompt [default: a new one].
    #[arg(long, value_name = "ID")]
    pub(crate) id: Option<String>,
    /// Return when the prompt is safe; `session attach` shows what follows.
    #[arg(long)]
    pub(crate) no_wait: bool,
    /// What becomes of tools that need to be allowed.
    #[arg(long, value_enum, default_value_t)]
    pub(crate) tools: Tools,
}

#[derive(Debug, Args)]
pub(crate) struct DecideArgs {
    /// The session.
    pub(crate) session: String,
    /// The call, or the beginning of it; may be left out when only one waits.
    pub(crate) call: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct ShareArgs {
    /// The session.
    pub(crate) session: String,
    /// With this node: its name, its id or the beginning of it.
    #[arg(long, value_name = "NODE", required_unless_present = "scope")]
    pub(crate) with: Option<String>,
    /// With a role of this mesh: its name or id.
    #[arg(long, visible_alias = "mesh", value_name = "MESH", conflicts_with = "with")]
    pub(crate) scope: Option<String>,
    /// Which role: members, or clients and members.
    #[arg(long, value_parser = ["member", "client"], default_value = "member", requires = "scope")]
    pub(crate) role: String,
    /// How far: watch (read and fork), prompt (and prompt, steer, cancel), own (everything), or none to end it.
    #[arg(long, value_parser = ["watch", "prompt", "own", "none"], default_value = "watch")]
    pub(crate) right: String,
}

/// The arguments of `delegate`.
#[derive(Debug, Args)]
pub(crate) struct DelegateArgs {
    /// The agent; without @NODE this node's, else the best of its peers'.
    #[arg(value_name = "AGENT[@NODE]")]
    pub(crate) agent: String,
    /// The task, complete in itself; a - among its words stands for standard input.
    #[arg(required = true)]
    pub(crate) task: Vec<String>,
    /// What the session is to be called.
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// What the node must be labelled with, when none is named, such as gpu; may be repeated.
    #[arg(long = "capability", value_name = "LABEL")]
    pub(crate) capabilities: Vec<String>,
    /// End the session when the task is done; it can still be read.
    #[arg(long)]
    pub(crate) archive: bool,
    /// What becomes of tools that need to be allowed.
    #[arg(long, value_enum, default_value_t)]
    pub(crate) tools: Tools,
}
