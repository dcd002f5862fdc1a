//! The commands and their arguments.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;

use crate::board::BoardCommand;
use crate::ca::CaArgs;
use crate::session::args::{DelegateArgs, SessionCommand, Tools};

const AFTER_HELP: &str = "\
Exit codes:
  0    done
  1    the node refused or something failed; the message says what and, where known, how to mend it
  2    wrong usage
  3    no node is running
  4    a limit ended the agent's turn
  5    somebody cancelled the agent's turn
  130  ended by Ctrl-C

With --json a failure goes to standard output as {\"error\":{\"code\",\"message\",\"mend\"}}.

Environment:
  QMT_HOME     folder of the node to talk to [default: ~/.qmt]
  QMT_INVITE   the invite for `join`
  QMT_API_KEY  the gateway's key for `chat`, when the node sets one

Start with:
  qmt-node &                        run a node here
  qmt-cli invite                    make a mesh, and an invite for one more machine
  qmt-cli join TOKEN                join with it, on that machine
  qmt-cli chat \"Name three rivers\"  ask a model of the mesh";

/// Talk to the QMT node of this machine: invite and join machines, serve models, chat.
#[derive(Debug, Parser)]
#[command(name = "qmt-cli", version, max_term_width = 100, after_help = AFTER_HELP)]
pub(crate) struct Cli {
    /// Print JSON alone to standard output, failures too.
    #[arg(long, global = true)]
    pub(crate) json: bool,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make an invite, founding a mesh when the node is in none.
    ///
    /// The token alone goes to standard output, so that it can be piped; what it is good for goes to standard error.
    Invite(InviteArgs),
    /// List the invites that this node made.
    Invites,
    /// Revoke an invite (with every membership that came of it) or a node (its membership ends).
    Revoke {
        /// An invite's id or the beginning of it, or a node's id or name.
        #[arg(value_name = "INVITE|NODE")]
        subject: String,
        /// The mesh, when the name is in several: its name or id.
        #[arg(long, visible_alias = "mesh", value_name = "MESH")]
        scope: Option<String>,
        /// Revoke a node by the recovery key in this file: the only way to revoke a founder.
        #[arg(long, value_name = "FILE")]
        recovery_key: Option<PathBuf>,
    },
    /// Make a member an admin, who may admit, renew and revoke; for the founder of the mesh, or with its recovery key.
    Admin {
        /// Its name, its id or the beginning of it.
        node: String,
        /// The mesh, when the name is in several: its name or id.
        #[arg(long, visible_alias = "mesh", value_name = "MESH")]
        scope: Option<String>,
        /// Appoint by the recovery key in this file.
        #[arg(long, value_name = "FILE")]
        recovery_key: Option<PathBuf>,
    },
    /// Join the mesh of an invite.
    Join {
        /// The token, its qmt:// link, or - to read either from standard input.
        #[arg(env = "QMT_INVITE", hide_env_values = true)]
        token: String,
    },
    /// Leave a mesh.
    Leave {
        /// Its name or id.
        mesh: String,
    },
    /// Show the node: its meshes, links, models and addresses.
    Status,
    /// List the nodes of its meshes.
    Nodes,
    /// Measure the round trip to a node; Ctrl-C ends it with the summary.
    Ping {
        /// Its name, its id or the beginning of it.
        node: String,
        /// How often, 1 to 100.
        #[arg(long, short, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=100))]
        count: u32,
    },
    /// List the models that the node can reach, or download one.
    Models {
        #[command(subcommand)]
        what: Option<ModelsCommand>,
    },
    /// Serve a model at this node, and wait until it answers; one that is not on its disk is downloaded first. Nodes at which it
    /// was dropped serve it again.
    Load {
        /// Its name, a path to a GGUF file, or what can be downloaded: org/repo/file.gguf or a URL.
        model: String,
        /// At another node, from that one's disk: its name, its id or the beginning of it.
        #[arg(long)]
        node: Option<String>,
        /// Split it over nodes even where one would do.
        #[arg(long)]
        split: bool,
        /// Return at once; `qmt-cli models` shows how far it is.
        #[arg(long)]
        no_wait: bool,
    },
    /// Show where a model would run and how fast, with the arithmetic; nothing is loaded.
    Plan {
        /// Its name, or a path to a GGUF file.
        model: String,
        /// As if a split were asked for.
        #[arg(long)]
        split: bool,
        /// Tokens of context of one request [default: the node's own].
        #[arg(long, value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(1..=16_777_216))]
        ctx_size: Option<u32>,
    },
    /// Stop serving a model at this node only.
    Unload {
        /// Its name.
        model: String,
    },
    /// Stop the serving of a model in the whole mesh.
    Drop {
        /// Its name.
        model: String,
        /// At this node only: its name, its id or the beginning of it.
        #[arg(long)]
        node: Option<String>,
    },
    /// Show where requests would go, and why, and whose models agents ask; or by which ways a node is reached.
    #[command(args_conflicts_with_subcommands = true)]
    Routes {
        #[command(subcommand)]
        what: Option<RoutesCommand>,
        /// A model (all of them, and this node's agents, without it), an agent, or a node: its name, its id or a unique
        /// prefix of it.
        #[arg(value_name = "MODEL|NODE|AGENT")]
        of: Option<String>,
    },
    /// List the agents that sessions can be held with, here and at peers.
    Agents,
    /// Begin, prompt, watch, share, fork and end sessions with agents.
    ///
    /// SESSION is an id, the beginning of one, or a name, each with @NODE behind it for a session of another node.
    Session {
        #[command(subcommand)]
        what: SessionCommand,
    },
    /// Make, read and share boards, on which people and agents of the mesh post.
    ///
    /// BOARD is a name, an id or the beginning of one, each with @NODE behind it for a board of another node; a name alone is
    /// looked for at this node first, then at all that are reached.
    Board {
        #[command(subcommand)]
        what: BoardCommand,
    },
    /// Give an agent a task, show how it is done, and exit by how it ended.
    Delegate(DelegateArgs),
    /// Be an agent of the Agent Client Protocol on standard input and output, for an editor to use one of the mesh as its own.
    Acp {
        /// The agent; without @NODE this node's, else the best of its peers'.
        #[arg(value_name = "AGENT[@NODE]")]
        agent: String,
    },
    /// Be a server of the Model Context Protocol on standard input and output, for any agent to list nodes, delegate, and use
    /// sessions.
    Mcp,
    /// Talk to a model of the mesh, or with --agent to an agent: one answer to PROMPT, or a conversation.
    ///
    /// A conversation with an agent is a session of its node: it goes on through restarts, and --session goes on with it later.
    ///
    /// Without PROMPT, standard input is the prompt when it is a file or a pipe; at a terminal a conversation begins, in which
    /// Ctrl-C stops an answer and /exit or Ctrl-D ends.
    Chat(ChatArgs),
    /// Show who let whom in, when, and what a revocation ended; also when no node runs.
    ///
    /// The rows form a chain of hashes. With --verify every row is checked, and a broken chain is a failure (exit code 1).
    Audit(AuditArgs),
    /// Turn the configuration of another system into this node's; needs no node.
    Config {
        #[command(subcommand)]
        what: ConfigCommand,
    },
    /// Print a link that opens the node's page in a browser of this machine, once.
    Console(ConsoleArgs),
    /// Show the mesh as it is now, every second anew; once where the output is no terminal.
    Top,
    /// Show the node's last log lines.
    Logs(LogsArgs),
    /// Have this machine run the node by itself, under systemd or launchd.
    Service {
        #[command(subcommand)]
        what: ServiceCommand,
    },
    /// Print what makes a shell complete the words of this program.
    Completions {
        /// The shell.
        #[arg(value_enum)]
        shell: Shell,
    },
    /// Write the manual pages of this program into a folder.
    Man {
        /// The folder; it is made where it is not there.
        folder: PathBuf,
    },
    /// Make and keep the CA whose certificates open the agent channel; needs no node.
    Ca(CaArgs),
    /// Find what is missing or wrong, and what mends it; also when no node runs.
    Doctor,
    /// Install llama.cpp and a first model on this machine, once; needs no node.
    ///
    /// Resumes what was interrupted, and calls it good only after a real token. QMT_HOME, QMT_MODELS, QMT_CACHE, QMT_JOBS and
    /// QMT_CMAKE_ARGS (such as -DGGML_CUDA=ON) change where and how.
    Setup(SetupArgs),
}

#[derive(Debug, Args)]
pub(crate) struct InviteArgs {
    /// Name of the mesh: of the one to found, or of one that this node is in.
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// How long the invite holds: 90m, 24h, 7d, never [default: 24h].
    #[arg(long, value_parser = ttl)]
    pub(crate) ttl: Option<String>,
    /// How many nodes it admits, 0 for any number [default: 1].
    #[arg(long, value_name = "N")]
    pub(crate) uses: Option<u32>,
    /// What they may be [default: member].
    #[arg(long, value_parser = ["member", "client"])]
    pub(crate) role: Option<String>,
    /// They may invite others.
    #[arg(long)]
    pub(crate) can_invite: bool,
    /// The mesh, when this node can invite to several: its name or id.
    #[arg(long, visible_alias = "mesh", value_name = "MESH")]
    pub(crate) scope: Option<String>,
    /// Show a QR code too.
    #[arg(long)]
    pub(crate) qr: bool,
    /// Write the QR code to this file as SVG; it admits whoever reads it.
    #[arg(long, value_name = "FILE")]
    pub(crate) svg: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct AuditArgs {
    /// One mesh: its name or id; one that was left too.
    #[arg(long, visible_alias = "mesh", value_name = "MESH")]
    pub(crate) scope: Option<String>,
    /// How far back: 90m, 24h, 7d, never for all [default: never].
    #[arg(long, value_name = "TIME", value_parser = ttl)]
    pub(crate) since: Option<String>,
    /// What is about or by one node: its name, its id or the beginning of it; one that is gone too.
    #[arg(long)]
    pub(crate) node: Option<String>,
    /// How many rows, the newest.
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=5_000))]
    pub(crate) limit: u32,
    /// Check that no row was changed, removed or put in.
    #[arg(long)]
    pub(crate) verify: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ChatArgs {
    /// An agent instead of a model; without @NODE this node's, else the best of its peers'.
    #[arg(long, short, value_name = "NAME[@NODE]", conflicts_with_all = ["model", "system", "complete", "max_tokens", "temperature"])]
    pub(crate) agent: Option<String>,
    /// Go on with this session of an agent: an id, the beginning of one, or a name, each with @NODE behind it.
    #[arg(long, short, conflicts_with_all = ["model", "system", "complete", "max_tokens", "temperature"])]
    pub(crate) session: Option<String>,
    /// What becomes of tools of an agent that need to be allowed.
    #[arg(long, value_enum, default_value_t)]
    pub(crate) tools: Tools,
    /// The model: its name or a part of it that no other model has [default: the only one].
    #[arg(long, short)]
    pub(crate) model: Option<String>,
    /// Instructions that precede the conversation.
    #[arg(long, value_name = "TEXT")]
    pub(crate) system: Option<String>,
    /// Continue the prompt as text instead of answering it: for base models, which know no conversation.
    #[arg(long)]
    pub(crate) complete: bool,
    /// Longest answer, in tokens.
    #[arg(long, value_name = "N")]
    pub(crate) max_tokens: Option<u32>,
    /// How freely words are chosen, 0 for always the likeliest.
    #[arg(long, value_name = "T")]
    pub(crate) temperature: Option<f64>,
    /// Key of the node's gateway, when it sets one.
    #[arg(long, value_name = "KEY", env = "QMT_API_KEY", hide_env_values = true)]
    pub(crate) api_key: Option<String>,
    /// What to ask, in one or several words; a - among them stands for standard input.
    pub(crate) prompt: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct SetupArgs {
    /// llama.cpp only.
    #[arg(long)]
    pub(crate) runtime_only: bool,
    /// The model only.
    #[arg(long, conflicts_with_all = ["runtime_only", "bin_dir"])]
    pub(crate) model_only: bool,
    /// Use llama-server and ggml-rpc-server from this folder instead of building them.
    #[arg(long, value_name = "DIR")]
    pub(crate) bin_dir: Option<PathBuf>,
    /// Change nothing; say what is missing.
    #[arg(long)]
    pub(crate) check: bool,
}

#[derive(Debug, Clone, Subcommand)]
pub(crate) enum ModelsCommand {
    /// The same as `models` alone.
    List,
    /// Download a model to the node's disk, from members close by or from the hub; what was interrupted goes on.
    ///
    /// Ctrl-C stops the download and keeps what has come; pulling again goes on from there. HF_ENDPOINT and HF_TOKEN are read
    /// by the node.
    Pull {
        /// org/repo/file.gguf (any part of a split model means all of it), a URL (#sha256=... is checked), or the name of a
        /// model that a member has.
        #[arg(value_name = "NAME|URL")]
        model: String,
    },
    /// List the downloads under way, and those that ended lately.
    Pulls,
}

#[derive(Debug, Clone, Subcommand)]
pub(crate) enum RoutesCommand {
    /// List whose models this node's agents ask.
    Agents,
    /// Change whose model an agent of this node asks; it holds from its next model call on, over restarts too.
    Set {
        /// The agent.
        agent: String,
        #[command(flatten)]
        to: RouteTo,
    },
    /// Have an agent ask again whom the configuration says.
    Unset {
        /// The agent.
        agent: String,
    },
}

/// Whose model.
#[derive(Debug, Clone, Args)]
#[group(required = true, multiple = false)]
pub(crate) struct RouteTo {
    /// This node's alone.
    #[arg(long)]
    pub(crate) local: bool,
    /// This node's first, then its peers'.
    #[arg(long)]
    pub(crate) any: bool,
    /// A peer's: its name, its id or the beginning of it.
    #[arg(long, value_name = "NODE")]
    pub(crate) peer: Option<String>,
}

#[derive(Debug, Clone, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Turn the mesh: block of a YAML configuration into [agent_channel], and say what is not as it was.
    Import {
        /// The YAML file.
        #[arg(value_name = "FILE.yaml")]
        file: PathBuf,
        /// Write to this file, which must not be there yet, instead of standard output.
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
}

/// Checks a time to live where it is typed; the node reads the same text.
fn ttl(text: &str) -> Result<String, mesh_identity::ttl::InvalidTtl> {
    mesh_identity::ttl::parse(text).map(|_| text.to_owned())
}

#[derive(Debug, Args)]
pub(crate) struct ConsoleArgs {
    /// The link is for somebody who may watch and change nothing.
    #[arg(long)]
    pub(crate) read_only: bool,
    /// Sign every browser out, and end the links that were not used.
    #[arg(long, conflicts_with = "read_only")]
    pub(crate) close: bool,
}

#[derive(Debug, Args)]
pub(crate) struct LogsArgs {
    /// Go on with lines as they come, also when the node is started again; Ctrl-C ends it.
    #[arg(long, short)]
    pub(crate) follow: bool,
    /// Lines of this level and graver ones.
    #[arg(long, value_enum, value_name = "LEVEL")]
    pub(crate) level: Option<LevelArg>,
    /// Lines in which this stands: in the message, the module or a value.
    #[arg(long, value_name = "TEXT")]
    pub(crate) text: Option<String>,
    /// The last so many lines.
    #[arg(long, short = 'n', value_name = "N", default_value_t = 200, value_parser = clap::value_parser!(u32).range(0..=10_000))]
    pub(crate) lines: u32,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub(crate) enum LevelArg {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

impl From<LevelArg> for mesh_control::LogLevel {
    fn from(level: LevelArg) -> Self {
        match level {
            LevelArg::Error => Self::Error,
            LevelArg::Warn => Self::Warn,
            LevelArg::Info => Self::Info,
            LevelArg::Debug => Self::Debug,
            LevelArg::Trace => Self::Trace,
        }
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum ServiceCommand {
    /// Write the service's file, start it, and have it start by itself from now on.
    Install(ServiceInstall),
    /// Stop the service and take its file away; the node's own files are kept.
    Uninstall {
        /// The system's, not this user's.
        #[arg(long)]
        system: bool,
    },
}

#[derive(Debug, Args)]
pub(crate) struct ServiceInstall {
    /// A service of the system, from boot on, not one of this user. Needs root.
    #[arg(long, requires = "user")]
    pub(crate) system: bool,
    /// As whom a service of the system runs.
    #[arg(long, value_name = "NAME", requires = "system")]
    pub(crate) user: Option<String>,
    /// Print the file and change nothing.
    #[arg(long)]
    pub(crate) print: bool,
    /// Write the file and start nothing.
    #[arg(long, conflicts_with = "print")]
    pub(crate) no_start: bool,
    /// Flags of `qmt-node`, behind `--`.
    #[arg(last = true, value_name = "FLAG")]
    pub(crate) flags: Vec<String>,
}
