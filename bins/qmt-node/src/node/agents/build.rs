//! From the configuration to agents with their tools.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use mesh_sessions::agent::Agent;
use mesh_sessions::chain::Budget;
use mesh_sessions::ids::AgentId;
use mesh_sessions::tool::Tool;
use mesh_sessions::tools::{
    BoardPost, BoardRead, Delegate, Environment, FileLimits, Files, Guard, Mcp, McpAt, McpLimits, McpProgram,
    McpServer, McpWeb, Secrets, Shell, ShellLimits, Workspace,
};

use super::confine::{Hidden, WORK_FOLDER, confinement};
use super::delegate::Mesh;
use crate::config::{AgentEntry, BuiltIn, Config, Instructions, Secret, ServerAt, ServerEntry};

/// So long sessions wait for MCP servers before they go on without their tools.
const SERVERS: Duration = Duration::from_secs(10);
/// How often servers that did not answer are asked again.
pub(super) const SERVERS_AGAIN: Duration = Duration::from_secs(20);

/// The agents of this node, and the servers whose tools they have.
#[derive(Default)]
pub(super) struct Built {
    agents: Vec<(Agent, Vec<Mcp>)>,
}

/// What every agent is built of.
pub(super) struct Parts<'a> {
    pub(super) config: &'a Config,
    pub(super) mesh: Mesh,
    pub(super) guard: Guard,
}

impl Built {
    /// Every agent of the configuration that can be had; the others are named in the log. Blocking; within a runtime.
    pub(super) fn new(parts: &Parts<'_>) -> Self {
        let hidden = Hidden::of(parts.config);
        let secrets = secrets(parts.config);
        let mut built = Self::default();
        for entry in parts.config.agents.iter().chain(&parts.config.delegates) {
            match parts.agent(entry, &hidden, &secrets) {
                Ok(agent) => built.agents.push(agent),
                Err(why) => tracing::error!(agent = %entry.id, why, "an agent is left out"),
            }
        }
        built
    }

    /// The agents with the tools that their servers have now, and whether all servers answered.
    pub(super) async fn with_servers(&self) -> (Vec<Agent>, bool) {
        let mut agents = Vec::new();
        let mut is_whole = true;
        for (agent, servers) in &self.agents {
            let asked = servers.iter().map(|server| tokio::time::timeout(SERVERS, server.tools()));
            let mut agent = agent.clone();
            for tools in join_all(asked).await {
                match tools {
                    Ok(Ok(tools)) => agent.tools.extend(tools),
                    Ok(Err(error)) => {
                        tracing::warn!(agent = %agent.id, %error, "an MCP server's tools are missing");
                        is_whole = false;
                    }
                    Err(_) => is_whole = false,
                }
            }
            agents.push(agent);
        }
        (agents, is_whole)
    }

    /// Ends the servers.
    pub(super) async fn close(&self) {
        join_all(self.agents.iter().flat_map(|(_, servers)| servers).map(Mcp::close)).await;
    }
}

impl Parts<'_> {
    fn agent(
        &self,
        entry: &AgentEntry,
        hidden: &Hidden,
        secrets: &Secrets,
    ) -> Result<(Agent, Vec<Mcp>), String> {
        let needs_folder = entry.tools.iter().any(|tool| tool.needs_folder()) || !entry.servers.is_empty();
        let workspace = if needs_folder { Some(self.workspace(entry, hidden)?) } else { None };
        let mut tools: Vec<Arc<dyn Tool>> = Vec::new();
        let mut servers = Vec::new();
        if let Some(workspace) = &workspace {
            let root = workspace.root();
            let files = Files {
                workspace: workspace.clone(),
                secrets: secrets.clone(),
                limits: FileLimits::default(),
            };
            tools.extend(files.tools());
            tools.push(Arc::new(Shell {
                workspace: workspace.clone(),
                guard: self.guard.clone(),
                secrets: secrets.clone(),
                environment: Environment::default(),
                confinement: Some(confinement(entry, root, entry.confined, hidden)),
                limits: ShellLimits::default(),
            }));
            let start = |server| Mcp::new(self.server(entry, server, root, hidden, secrets));
            servers.extend(entry.servers.iter().map(start));
        }
        tools.push(secrets.keep_from(Arc::new(Delegate {
            roster: Arc::new(self.mesh.of(&entry.id)),
            delegator: Arc::new(self.mesh.of(&entry.id)),
            budget: Budget::UNBOUNDED,
        })));
        let boards = Arc::new(self.mesh.of(&entry.id));
        tools.push(secrets.keep_from(Arc::new(BoardRead(boards.clone()))));
        tools.push(secrets.keep_from(Arc::new(BoardPost(boards))));
        tools.retain(|tool| {
            let named = BuiltIn::named(&tool.spec().name);
            named.is_some_and(|named| entry.tools.contains(&named))
        });
        let mut agent = Agent::new(entry.id.clone(), entry.model.clone());
        agent.description.clone_from(&entry.description);
        agent.instructions = match &entry.instructions {
            Instructions::Text(text) => text.clone(),
            Instructions::File(path) => std::fs::read_to_string(path)
                .map_err(|error| format!("its instructions in {} cannot be read: {error}", path.display()))?,
        };
        agent.max_tokens = entry.max_tokens;
        agent.temperature = entry.temperature;
        agent.window_tokens = entry.context_tokens;
        agent.tools = tools;
        agent.policy = entry.policy.clone();
        agent.limits = entry.limits.clone();
        agent.interrupted = entry.interrupted;
        agent.open_to = entry.open_to;
        Ok((agent, servers))
    }

    fn workspace(&self, entry: &AgentEntry, hidden: &Hidden) -> Result<Workspace, String> {
        let path = match &entry.workspace {
            Some(path) => path.clone(),
            None => self.own_folder(&entry.id)?,
        };
        if let Some(why) = hidden.forbids(&path) {
            return Err(format!(
                "its workspace {} cannot be used: {why}; name another folder",
                path.display()
            ));
        }
        Workspace::open(&path)
            .map_err(|error| format!("its workspace {} cannot be opened: {error}", path.display()))
    }

    fn own_folder(&self, agent: &AgentId) -> Result<PathBuf, String> {
        use std::os::unix::fs::DirBuilderExt;
        let path = self.config.home.join(WORK_FOLDER).join(agent.as_str());
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&path);
        made.map_err(|error| format!("its workspace {} cannot be made: {error}", path.display()))?;
        Ok(path)
    }

    fn server(
        &self,
        entry: &AgentEntry,
        server: &ServerEntry,
        folder: &Path,
        hidden: &Hidden,
        secrets: &Secrets,
    ) -> McpServer {
        let at = match &server.at {
            ServerAt::Program(program) => {
                let mut environment = Environment::default();
                environment.set.extend(program.environment.clone());
                let passed =
                    program.secrets.iter().map(|(name, value)| (name.clone(), value.expose().to_owned()));
                environment.set.extend(passed);
                McpAt::Program(McpProgram {
                    program: program.program.clone(),
                    arguments: program.arguments.iter().map(Into::into).collect(),
                    folder: folder.to_owned(),
                    environment,
                    guard: self.guard.clone(),
                    confinement: Some(confinement(entry, folder, program.confined, hidden)),
                })
            }
            ServerAt::Web { url, headers, token } => {
                let mut headers = headers.clone();
                let key = token.as_ref().map(|token| format!("Bearer {}", token.expose()));
                headers.extend(key.map(|key| ("authorization".to_owned(), key)));
                McpAt::Web(McpWeb { url: url.clone(), headers })
            }
        };
        McpServer {
            name: server.name.clone(),
            at,
            secrets: secrets.clone(),
            trusts_hints: server.trusts_hints,
            limits: McpLimits::default(),
        }
    }
}

/// The values that no tool is to return.
fn secrets(config: &Config) -> Secrets {
    let keys = config.providers.iter().filter_map(|provider| provider.api_key.as_ref());
    let passed = config.agents.iter().flat_map(|agent| &agent.servers).flat_map(ServerEntry::secrets);
    let all = keys.chain(&config.gateway.api_key).chain(&config.hub.token).chain(passed);
    let psk = config.mesh.lan.iter().filter_map(|lan| lan.psk.clone());
    Secrets::new(all.map(|secret: &Secret| secret.expose().to_owned()).chain(psk))
}
