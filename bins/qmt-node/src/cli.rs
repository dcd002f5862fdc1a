//! The flags of `qmt-node`. They override the configuration file; `config::load` merges both.

use std::path::PathBuf;

use clap::Parser;

use crate::config::LogFormat;

/// Run a node of a QMT mesh.
#[derive(Debug, Clone, Default, Parser)]
#[command(name = "qmt-node", version, about, max_term_width = 100)]
pub struct Cli {
    /// Configuration file [default: config.toml in QMT_HOME or ~/.qmt, when it is there].
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Listen on the LAN at this address [without a value: /ip4/0.0.0.0/tcp/9000].
    #[arg(long, value_name = "ADDR", num_args = 0..=1, require_equals = true, default_missing_value = "/ip4/0.0.0.0/tcp/9000")]
    pub mesh: Option<String>,

    /// Dial this peer: a multiaddr, with or without /p2p/ID. May be repeated.
    #[arg(long = "peer", value_name = "ADDR")]
    pub peers: Vec<String>,

    /// Make an invite and print its token and QR code, founding a mesh (of this name) when the node is in none.
    #[arg(long, value_name = "NAME", num_args = 0..=1, require_equals = true, default_missing_value = "")]
    pub mesh_invite: Option<String>,

    /// How long that invite lives: 90m, 24h, 7d, never [default: 24h].
    #[arg(long, value_name = "TTL", requires = "mesh_invite")]
    pub invite_ttl: Option<String>,

    /// How many nodes may use that invite, 0 for any number [default: 1].
    #[arg(long, value_name = "N", requires = "mesh_invite")]
    pub invite_uses: Option<u32>,

    /// Join the mesh of this invite: a token or a qmt:// URL. May be repeated.
    #[arg(long, visible_alias = "join", value_name = "TOKEN|URL")]
    pub mesh_join: Vec<String>,

    /// Serve this model: a name, a path to a GGUF file, org/repo/file.gguf or a URL. May be repeated.
    #[arg(long = "model", value_name = "MODEL")]
    pub models: Vec<String>,

    /// Split models over nodes even when they fit one.
    #[arg(long)]
    pub split: bool,

    /// Run as a lite client: no model, a throw-away identity.
    #[arg(long, conflicts_with_all = ["models", "split", "mesh_invite"])]
    pub client: bool,

    /// Port of the OpenAI-compatible gateway [default: 9337, or the next free one].
    #[arg(long, value_name = "PORT")]
    pub port: Option<u16>,

    /// Run the console [without a value: port 3131, or the next free one].
    #[arg(long, visible_alias = "dashboard", value_name = "PORT", num_args = 0..=1, require_equals = true, default_missing_value = "default")]
    pub console: Option<String>,

    /// UDP port of the internet transport [default: the system chooses].
    #[arg(long, value_name = "PORT")]
    pub bind_port: Option<u16>,

    /// Most memory to use for models, in GB (10^9 bytes); fractions are fine.
    #[arg(long, value_name = "GB")]
    pub max_vram: Option<f64>,

    /// Context of one request, in tokens.
    #[arg(long, value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(1..=16_777_216))]
    pub ctx_size: Option<u32>,

    /// Draft model for speculative decoding.
    #[arg(long, value_name = "PATH", conflicts_with = "no_draft")]
    pub draft: Option<PathBuf>,

    /// Most tokens drafted at a time.
    #[arg(long, value_name = "N")]
    pub draft_max: Option<u32>,

    /// Use no draft model.
    #[arg(long)]
    pub no_draft: bool,

    /// Shares of the devices, such as 3,1 (llama-server's --tensor-split).
    #[arg(long, value_name = "SHARES")]
    pub tensor_split: Option<String>,

    /// Device for models (llama-server's --device).
    #[arg(long, value_name = "DEVICE")]
    pub device: Option<String>,

    /// Folder with llama-server and rpc-server.
    #[arg(long, value_name = "DIR")]
    pub bin_dir: Option<PathBuf>,

    /// Use this relay. May be repeated.
    #[arg(long = "relay", value_name = "URL")]
    pub relays: Vec<String>,

    /// Name of this node [default: the host's name].
    #[arg(long, value_name = "NAME")]
    pub node_name: Option<String>,

    /// How log lines are written.
    #[arg(long, value_name = "FORMAT", value_enum)]
    pub log_format: Option<LogFormat>,
}
