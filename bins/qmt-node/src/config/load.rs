//! The file, the environment and the flags, merged.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use mesh_identity::{InviteToken, NodeName, ttl};
use mesh_inference::fetch::Config as FetchConfig;

use crate::cli::Cli;

use super::error::{ConfigError, Problem};
use super::reader::Document;
use super::types::*;
use super::{addr, parse};

/// What a node may know of its surroundings; a value, so that tests need not touch the process.
#[derive(Debug, Clone, Default)]
pub struct Environment {
    /// The variables.
    pub vars: BTreeMap<String, String>,
    /// The working directory, from which relative paths in flags are taken.
    pub cwd: PathBuf,
}

impl Environment {
    /// That of this process. Variables that are no UTF-8 are left out.
    pub fn process() -> Self {
        let text = |(key, value): (std::ffi::OsString, std::ffi::OsString)| {
            Some((key.into_string().ok()?, value.into_string().ok()?))
        };
        Self {
            vars: std::env::vars_os().filter_map(text).collect(),
            cwd: std::env::current_dir().unwrap_or_default(),
        }
    }

    fn set(&self, name: &str) -> Option<&str> {
        self.vars.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    fn home(&self) -> Result<PathBuf, mesh_control::NoHome> {
        if let Some(home) = self.set("QMT_HOME") {
            return Ok(self.cwd.join(home));
        }
        self.set("HOME").map(|home| self.cwd.join(home).join(".qmt")).ok_or(mesh_control::NoHome)
    }
}

/// Reads the file (`--config`, else `config.toml` in the home folder when it is there), lets the flags override it, and
/// checks everything. Writes nothing. Reads one file and blocks for it.
///
/// # Errors
/// [`ConfigError::Invalid`] holds every fault at once.
pub fn load(cli: &Cli, environment: &Environment) -> Result<Config, ConfigError> {
    let home = environment.home()?;
    let mut config = Config::at(&home);
    config.inference.model_dirs =
        environment.set("HOME").map(|home| Path::new(home).join(".models")).into_iter().collect();
    let path =
        cli.config.as_ref().map_or_else(|| home.join("config.toml"), |path| environment.cwd.join(path));
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => {
            config.file = Some(path.clone());
            text
        }
        // A home that is no folder is told of where it is opened.
        Err(error)
            if cli.config.is_none()
                && matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) =>
        {
            String::new()
        }
        Err(source) => return Err(ConfigError::Read { path, source }),
    };
    let document = Document::parse(&path, &text, &environment.vars);
    parse::apply(&document, &mut config);
    let (mut problems, warnings) = document.finish();
    config.warnings = warnings;
    Flags { cli, environment, problems: &mut problems }.apply(&mut config);
    problems.extend(unproved_peers(&config));
    if problems.is_empty() { Ok(config) } else { Err(ConfigError::Invalid(problems)) }
}

/// Peers that `trust = "peers"` cannot let in.
fn unproved_peers(config: &Config) -> Option<Problem> {
    config.mesh.lan.as_ref().filter(|lan| lan.trust == Trust::Peers)?;
    let unproved: Vec<String> = config
        .mesh
        .peers
        .iter()
        .filter(|peer| peer.id.is_none())
        .filter_map(|peer| peer.name.clone().or_else(|| Some(peer.addr.as_ref()?.to_string())))
        .collect();
    (!unproved.is_empty()).then(|| Problem {
        at: "trust in [mesh.lan]".to_owned(),
        message: format!(
            "is \"peers\", and {} without an id cannot be told from a stranger; add the id of each, which `qmt-cli status` \
             shows there, or /p2p/ID behind its address",
            unproved.join(", ")
        ),
    })
}

struct Flags<'a> {
    cli: &'a Cli,
    environment: &'a Environment,
    problems: &'a mut Vec<Problem>,
}

impl Flags<'_> {
    fn problem(&mut self, at: &str, message: impl Into<String>) {
        self.problems.push(Problem { at: at.to_owned(), message: message.into() });
    }

    fn apply(mut self, config: &mut Config) {
        self.node(config);
        self.mesh(config);
        self.inference(config);
        self.hub(config);
        self.ports(config);
        if let Some(format) = self.cli.log_format {
            config.log_format = format;
        }
    }

    fn hub(&mut self, config: &mut Config) {
        config.hub.endpoint = self.environment.set("HF_ENDPOINT").map(str::to_owned);
        config.hub.token = self.environment.set("HF_TOKEN").map(Secret::new);
        let either = |upper, lower| self.environment.set(upper).or_else(|| self.environment.set(lower));
        config.hub.proxies = Proxies {
            http: either("HTTP_PROXY", "http_proxy").map(Secret::new),
            https: either("HTTPS_PROXY", "https_proxy").map(Secret::new),
            all: either("ALL_PROXY", "all_proxy").map(Secret::new),
            no: either("NO_PROXY", "no_proxy").map(str::to_owned),
        };
        if let Some(hub) = &config.hub.endpoint
            && let Err(why) = FetchConfig::new(Vec::new()).with_endpoint(hub)
        {
            self.problem("HF_ENDPOINT", why.to_string());
        }
    }

    fn node(&mut self, config: &mut Config) {
        if let Some(name) = &self.cli.node_name {
            match NodeName::new(name.as_str()) {
                Ok(name) => config.node_name = name,
                Err(_) => self.problem("--node-name", "must be 1 to 63 of the characters A-Z a-z 0-9 . _ -"),
            }
        }
        config.client = self.cli.client;
        match self.environment.set("QMT_EPHEMERAL_KEY") {
            Some("1" | "true" | "yes") => config.identity = Identity::Ephemeral,
            Some("0" | "false" | "no") | None => {}
            Some(_) => self.problem("QMT_EPHEMERAL_KEY", "must be 1 or 0"),
        }
        if config.client {
            config.identity = Identity::Ephemeral;
            config.inference.models.clear();
        }
    }

    fn mesh(&mut self, config: &mut Config) {
        let cli = self.cli;
        let mesh = &mut config.mesh;
        if cli.mesh.is_some()
            || cli.mesh_invite.is_some()
            || !cli.mesh_join.is_empty()
            || !cli.peers.is_empty()
        {
            mesh.enabled = Some(true);
        }
        if let Some(text) = &cli.mesh {
            match addr::listen(text) {
                Some(address) => {
                    let old = mesh.lan.take();
                    let (discovery, trust) =
                        old.as_ref().map(|lan| (lan.discovery, lan.trust)).unwrap_or_default();
                    mesh.lan = Some(Lan {
                        listen: address.addr,
                        discovery,
                        trust,
                        psk: old.and_then(|lan| lan.psk),
                    });
                    if let Some(mended) = address.mended {
                        config
                            .warnings
                            .push(format!("--mesh: {text:?} is no valid address; it is read as {mended:?}"));
                    }
                }
                None => self.problem(
                    "--mesh",
                    format!("must be {}, not {text:?}; to dial a peer write --peer", addr::LISTEN),
                ),
            }
        }
        for text in &cli.peers {
            match addr::address(text) {
                Some(address) => mesh.peers.push(StaticPeer {
                    name: None,
                    addr: Some(address.addr),
                    id: address.id,
                    role: None,
                }),
                None => self.problem("--peer", format!("must be {}, not {text:?}", addr::PEER)),
            }
        }
        for text in &cli.mesh_join {
            match InviteToken::parse(text) {
                Ok(token) => mesh.scopes.push(ScopeEntry {
                    name: None,
                    invite: Some(token),
                    relays: None,
                    origin: "--mesh-join".into(),
                }),
                Err(why) => self.problem("--mesh-join", why.to_string()),
            }
        }
        mesh.invite = self.founding();
        if !cli.relays.is_empty() {
            let urls: Vec<_> = cli.relays.iter().map(|url| addr::relay_url(url)).collect();
            if let Some(accepted) = urls.iter().find_map(|url| url.as_ref().err()) {
                self.problem("--relay", format!("must be {accepted}"));
            }
            config.mesh.internet.relays = Relays::Custom(urls.into_iter().flatten().collect());
        }
    }

    fn founding(&mut self) -> Option<FoundingInvite> {
        let name = self.cli.mesh_invite.as_deref()?.trim();
        let is_shown = |c: char| !c.is_control();
        if name.len() > mesh_identity::MESH_NAME_BYTES_MAX || !name.chars().all(is_shown) {
            let message = format!(
                "a mesh name has 1 to {} bytes and no control characters",
                mesh_identity::MESH_NAME_BYTES_MAX
            );
            self.problem("--mesh-invite", message);
        }
        let ttl = match ttl::parse(self.cli.invite_ttl.as_deref().unwrap_or("24h")) {
            Ok(ttl) => ttl,
            Err(why) => {
                self.problem("--invite-ttl", why.to_string());
                None
            }
        };
        let name = Some(name.to_owned()).filter(|name| !name.is_empty());
        Some(FoundingInvite { name, ttl, uses: self.cli.invite_uses.unwrap_or(1) })
    }

    fn inference(&mut self, config: &mut Config) {
        let cli = self.cli;
        let inference = &mut config.inference;
        let cwd = &self.environment.cwd;
        if !cli.models.is_empty() {
            inference.models =
                cli.models.iter().map(|model| parse::model_name(model, |path| cwd.join(path))).collect();
        }
        if cli.models.iter().any(|model| model.trim().is_empty()) {
            self.problem("--model", "must not be empty");
        }
        inference.split |= cli.split;
        if let Some(gigabytes) = cli.max_vram {
            inference.max_vram_bytes = parse::gigabytes_to_bytes(gigabytes);
            if inference.max_vram_bytes.is_none() {
                self.problem("--max-vram", format!("must be {}, not {gigabytes}", parse::MAX_VRAM));
            }
        }
        if let Some(path) = &cli.draft {
            inference.draft = Draft::Path(cwd.join(path));
        }
        if cli.no_draft {
            inference.draft = Draft::Off;
        }
        if let Some(shares) = &cli.tensor_split {
            if !parse::is_shares(shares) {
                self.problem("--tensor-split", format!("must be {}, not {shares:?}", parse::SHARES));
            }
            inference.tensor_split = Some(shares.clone());
        }
        inference.ctx_size = cli.ctx_size.or(inference.ctx_size);
        inference.draft_max = cli.draft_max.or(inference.draft_max);
        inference.device = cli.device.clone().or(inference.device.take());
        inference.bin_dir = cli.bin_dir.as_ref().map(|dir| cwd.join(dir)).or(inference.bin_dir.take());
    }

    fn ports(&mut self, config: &mut Config) {
        if let Some(port) = self.cli.port {
            let ip = config.gateway.listener.addr.ip();
            config.gateway.listener = Listener { addr: SocketAddr::new(ip, port), asked: true };
        }
        match self.cli.console.as_deref() {
            Some("default") => config.console = config.console.or(Some(parse::console_at(None))),
            Some(text) => match text.parse() {
                Ok(port) => config.console = Some(parse::console_at(Some(port))),
                Err(_) => self.problem("--console", format!("must be a port from 0 to 65535, not {text:?}")),
            },
            None => {}
        }
        config.mesh.internet.bind_port = self.cli.bind_port.or(config.mesh.internet.bind_port);
    }
}
