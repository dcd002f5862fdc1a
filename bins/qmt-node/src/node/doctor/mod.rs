//! What is missing or wrong on this machine, and the command that mends it.
//!
//! Each check is a look and a judgement: `check_*` gathers facts, and what follows from them is said by a function without
//! clock, disk or socket.

mod names;
mod ports;
mod reach;
mod room;
pub(crate) mod skew;

use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use mesh_control::{Finding, Verdict};
use mesh_identity::{UnixTime, key_file};
use mesh_inference::catalogue::Catalogue;
use mesh_inference::llama::LlamaCpp;
use mesh_sessions::tools::Confinement;

use super::agents::all_entries;
use super::{Node, audit, chain, copied, renew};
use crate::config::{AgentEntry, BuiltIn, Config, Identity, Relays};

/// Below this limit of open files a busy gateway refuses callers.
const FILES_LOW: u64 = 1_024;
/// A clock before this was never set: 2026-01-01.
const CLOCK_FLOOR: UnixTime = UnixTime(1_767_225_600);
/// What a file system of another machine may be ahead.
const FILE_TIME_SLACK: Duration = Duration::from_secs(60);
/// For the port of a relay to accept.
const RELAY_DEADLINE: Duration = Duration::from_secs(4);
/// A grant is renewed at half its life; one that still is not after this has nobody to renew it, seconds.
const RENEWAL_LATE_SECS: u64 = 3 * 3_600;

const RUNTIME_MEND: &str =
    "run `qmt-cli setup` (`scripts/setup` in a checkout), or name the folder of llama-server with --bin-dir";

/// Findings of [`diagnose`].
pub type Diagnosis = Vec<Finding>;

/// Looks at everything that can be seen without a running node: its ports are tried, which one that runs has. Changes nothing.
pub async fn diagnose(config: &Config) -> Diagnosis {
    let mut findings = diagnose_machine(config).await;
    findings.extend(room::room(config.inference.max_vram_bytes, 0).map(|room| {
        let catalogue = Catalogue::scan(&config.inference.model_dirs);
        room::judge_memory(room, &wanted_models(config, &catalogue))
    }));
    findings.extend(ports::check_ports(config));
    findings.extend(reach::check_own_ports(config).await);
    findings.extend(check_configured_relays(config).await);
    findings
}

/// What is the same whether or not a node runs.
async fn diagnose_machine(config: &Config) -> Diagnosis {
    let mut findings = vec![check_home(&config.home)];
    findings.extend(room::check_disks(config));
    findings.extend([check_key(&config.identity), check_clock(config), check_files()]);
    let runtime = check_runtime(config).await;
    let runtime_missing = runtime.verdict == Verdict::Fail;
    findings.push(runtime);
    findings.push(check_models(config, runtime_missing));
    findings.extend(names::check_names(config).await);
    findings.extend(check_agents(all_entries(config), Confinement::is_enforced()));
    findings.extend(
        config
            .warnings
            .iter()
            .map(|warning| warn("configuration", warning.clone(), "edit the configuration file")),
    );
    findings
}

impl Node {
    /// The same, and what only the running node knows.
    pub(crate) async fn doctor(&self) -> Diagnosis {
        let (mut findings, clocks, reach, relays) = tokio::join!(
            diagnose_machine(self.config()),
            self.check_clocks(),
            self.check_reach(),
            self.check_relays()
        );
        findings.extend(self.check_memory());
        findings.extend(self.check_ports());
        findings.push(ok(
            "node",
            format!("runs as process {}, gateway at {}", std::process::id(), self.inner.gateway.local_addr()),
        ));
        findings.push(self.check_scopes());
        findings.extend(
            self.ended_memberships().into_iter().map(|sentence| fail("mesh", sentence, renew::END_MEND)),
        );
        findings.push(self.check_address());
        findings.extend(relays);
        findings.push(self.check_peers());
        findings.extend(reach);
        findings.extend(clocks);
        findings.push(self.check_versions());
        findings.extend(self.check_backends());
        let copied = self.inner.copied_keys.sentences(Instant::now()).into_iter();
        findings.extend(copied.map(|sentence| fail("key", sentence, copied::MEND)));
        findings.push(match self.trail_fault() {
            Some(fault) => warn("audit trail", fault, audit::MEND),
            None => ok("audit trail", "each row follows from the one before"),
        });
        findings
    }

    /// Models that run, or load, have their memory.
    fn check_memory(&self) -> Option<Finding> {
        let room = room::room(self.config().inference.max_vram_bytes, self.inner.lending.ledger().held())?;
        let catalogue = Catalogue::scan(&self.config().inference.model_dirs);
        let mut wanted = wanted_models(self.config(), &catalogue);
        let backends = self.backends().list();
        let has = |name: &str| {
            backends.iter().any(|backend| {
                use mesh_inference::backend::BackendState;
                backend.model == name
                    && matches!(&*backend.state.borrow(), BackendState::Ready | BackendState::Loading(_))
            })
        };
        wanted.retain(|(name, _)| !has(name));
        Some(room::judge_memory(room, &wanted))
    }

    fn check_ports(&self) -> Vec<Finding> {
        let gateway = ports::moved("gateway", self.config().gateway.listener.addr, self.gateway_addr());
        let console = self.config().console.zip(self.inner.console.as_ref());
        let console = console.and_then(|(wanted, (got, _))| ports::moved("console", wanted.addr, *got));
        gateway.into_iter().chain(console).collect()
    }

    fn check_scopes(&self) -> Finding {
        let scopes = self.scopes().list();
        if scopes.is_empty() {
            return warn(
                "mesh",
                "this node is in no mesh",
                "found one with `qmt-cli invite`, or join one with `qmt-cli join TOKEN`",
            );
        }
        let overdue = UnixTime(UnixTime::now().0.saturating_sub(RENEWAL_LATE_SECS));
        match scopes.iter().find(|scope| scope.grant.renew_at() < overdue) {
            Some(scope) => warn(
                "mesh",
                format!(
                    "the membership in {} ends at {} and was not renewed",
                    scope.name, scope.grant.expires_at
                ),
                "start a node that may admit others to it, such as the founder's; renewal is automatic",
            ),
            None => ok("mesh", scopes.iter().map(|scope| scope.name.as_str()).collect::<Vec<_>>().join(", ")),
        }
    }

    fn check_address(&self) -> Finding {
        let scopes = self.scopes().list();
        let Some(scope) = scopes.first() else { return ok("address", "not needed outside a mesh") };
        let addr = self.own_addr(&scope.id());
        if addr.relay.is_none() && addr.direct.iter().chain(&addr.lan).all(|direct| direct.ip().is_loopback())
        {
            return warn(
                "address",
                "no other machine can dial this node: it has loopback addresses only",
                "connect to a network, or announce an address with [mesh] external_addrs",
            );
        }
        ok("address", super::views::addresses(&addr).join(", "))
    }

    fn check_peers(&self) -> Finding {
        let mut down = Vec::new();
        let mut alive = 0;
        for scope in self.scopes().list() {
            let Some(gossip) = self.gossip(&scope.id()) else { continue };
            for member in gossip.members().iter() {
                if member.is_alive() { alive += 1 } else { down.push(member.name.to_string()) }
            }
        }
        if down.is_empty() {
            return ok("peers", format!("{alive} alive"));
        }
        warn(
            "peers",
            format!("{alive} alive; not heard: {}", down.join(", ")),
            "start qmt-node there, or check that UDP passes between the machines; it is redialed for ever",
        )
    }

    fn check_backends(&self) -> Vec<Finding> {
        self.backends()
            .list()
            .iter()
            .filter_map(|backend| match &*backend.state.borrow() {
                mesh_inference::backend::BackendState::Failed { reason } => Some(fail(
                    "model",
                    format!("{}: {reason}", backend.model),
                    format!("mend the cause, then `qmt-cli load {}`", backend.model),
                )),
                _ => None,
            })
            .collect()
    }
}

fn check_home(home: &Path) -> Finding {
    use std::os::unix::fs::PermissionsExt;
    match std::fs::metadata(home) {
        Ok(meta) if meta.permissions().mode() & 0o077 != 0 => warn(
            "home",
            format!("{} can be entered by others", home.display()),
            format!("chmod 700 {}", home.display()),
        ),
        Ok(_) => ok("home", home.display().to_string()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            ok("home", format!("{} will be made at the first start", home.display()))
        }
        Err(error) => {
            fail("home", format!("{}: {error}", home.display()), "set QMT_HOME to a folder of yours")
        }
    }
}

fn check_key(identity: &Identity) -> Finding {
    let path = match identity {
        Identity::Ephemeral => return ok("identity", "throw-away"),
        Identity::File(path) => path,
    };
    if !path.exists() {
        return ok("identity", format!("{} will be made at the first start", path.display()));
    }
    match key_file::load(path) {
        Ok(key) => ok("identity", key.node_id().to_string()),
        Err(error) => fail("identity", chain(&error), error.mend()),
    }
}

fn check_clock(config: &Config) -> Finding {
    let written = [config.node_db(), config.home.join("node.db-wal")]
        .iter()
        .filter_map(|file| file.metadata().and_then(|facts| facts.modified()).ok())
        .max();
    judge_clock(SystemTime::now(), written)
}

/// `written` is when this node wrote its database last.
fn judge_clock(now: SystemTime, written: Option<SystemTime>) -> Finding {
    let text = |time: SystemTime| {
        UnixTime(time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs()))
    };
    let mend = "`sudo timedatectl set-ntp true` (Linux), `sudo sntp -sS time.apple.com` (macOS)";
    if text(now) < CLOCK_FLOOR {
        let why = "invites and grants will seem to lie in the future";
        return fail("clock", format!("it says {}; {why}", text(now)), mend);
    }
    if let Some(written) = written.filter(|written| *written > now + FILE_TIME_SLACK) {
        return fail(
            "clock",
            format!(
                "it says {}, and this node wrote its database at {}: it went back",
                text(now),
                text(written)
            ),
            mend,
        );
    }
    ok("clock", text(now).to_string())
}

fn check_files() -> Finding {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    match limit {
        Some(files) if files < FILES_LOW => warn(
            "open files",
            format!("at most {files}"),
            format!("raise the limit with `ulimit -n {}`", FILES_LOW * 4),
        ),
        Some(files) => ok("open files", format!("at most {files}")),
        None => ok("open files", "no limit"),
    }
}

/// What the tools of agents reach; nothing to say of agents whose tools start nothing.
fn check_agents<'a>(agents: impl Iterator<Item = &'a AgentEntry>, is_enforced: bool) -> Option<Finding> {
    let starts = |agent: &&AgentEntry| agent.tools.contains(&BuiltIn::Shell) || !agent.servers.is_empty();
    let agents: Vec<&str> = agents.filter(starts).map(|agent| agent.id.as_str()).collect();
    if agents.is_empty() {
        return None;
    }
    let agents = agents.join(", ");
    Some(match is_enforced {
        true => ok("agents", format!("what these start is kept from the node's files: {agents}")),
        false => warn(
            "agents",
            format!(
                "this system confines no program: what these start reaches all files of this user, the node's key too: {agents}"
            ),
            "use a kernel with Landlock (Linux 5.13 or later, and `landlock` in /sys/kernel/security/lsm), or give these agents neither a shell nor MCP servers",
        ),
    })
}

async fn check_runtime(config: &Config) -> Finding {
    match LlamaCpp::find(
        config.inference.bin_dir.as_deref(),
        std::env::var_os("PATH").as_deref(),
        &config.home,
    )
    .await
    {
        Ok(llama) => ok("llama.cpp", format!("{} ({})", llama.server.display(), llama.version.text)),
        Err(error) if config.inference.models.is_empty() => warn("llama.cpp", chain(&error), RUNTIME_MEND),
        Err(error) => fail("llama.cpp", chain(&error), RUNTIME_MEND),
    }
}

fn check_models(config: &Config, runtime_missing: bool) -> Finding {
    let catalogue = Catalogue::scan(&config.inference.model_dirs);
    for wanted in &config.inference.models {
        if let Err(error) = catalogue.resolve(wanted) {
            return fail(
                "models",
                chain(&error),
                "run `qmt-cli setup` (`scripts/setup` in a checkout) for a first model, or name a GGUF file with --model",
            );
        }
    }
    let count = catalogue.models().len();
    let dirs: Vec<String> = config.inference.model_dirs.iter().map(|dir| dir.display().to_string()).collect();
    if count == 0 {
        let mend =
            "run `qmt-cli setup` (`scripts/setup` in a checkout) for a first model, or put a GGUF file there";
        return warn("models", format!("none in {}", dirs.join(", ")), mend);
    }
    let note = if runtime_missing { "; llama.cpp is needed to serve them" } else { "" };
    ok("models", format!("{count} in {}{note}", dirs.join(", ")))
}

/// Models that the configuration asks for, with the bytes of their files.
fn wanted_models(config: &Config, catalogue: &Catalogue) -> Vec<(String, u64)> {
    let found = config.inference.models.iter().filter_map(|wanted| catalogue.resolve(wanted).ok());
    found.map(|model| (model.name, model.file_bytes)).collect()
}

/// Of a node that does not run: whether the ports of the relays that it will use accept.
async fn check_configured_relays(config: &Config) -> Vec<Finding> {
    let Relays::Custom(urls) = &config.mesh.internet.relays else { return Vec::new() };
    let asked = urls.iter().map(|url| async move {
        let uri: http::Uri = url.parse().ok()?;
        let host = uri.host()?.trim_matches(['[', ']']).to_owned();
        let port = uri.port_u16().unwrap_or(if uri.scheme_str() == Some("http") { 80 } else { 443 });
        let dialed = tokio::net::TcpStream::connect((host.as_str(), port));
        Some(match tokio::time::timeout(RELAY_DEADLINE, dialed).await {
            Ok(Ok(_)) => ok("relay", format!("{url} accepts connections")),
            Ok(Err(error)) => {
                fail("relay", format!("{url} does not answer: {error}"), relay_mend(&host, port))
            }
            Err(_) => {
                let why = format!("nothing within {} s", RELAY_DEADLINE.as_secs());
                fail("relay", format!("{url} does not answer: {why}"), relay_mend(&host, port))
            }
        })
    });
    futures_util::future::join_all(asked).await.into_iter().flatten().collect()
}

fn relay_mend(host: &str, port: u16) -> String {
    format!(
        "start the node that runs it and let TCP {port} and UDP 7842 in there; `curl -v http://{host}:{port}/` tries it; or name another under relay_urls"
    )
}

fn ok(check: &str, detail: impl Into<String>) -> Finding {
    Finding { check: check.to_owned(), verdict: Verdict::Ok, detail: detail.into(), mend: None }
}

fn warn(check: &str, detail: impl Into<String>, mend: impl Into<String>) -> Finding {
    Finding {
        check: check.to_owned(),
        verdict: Verdict::Warn,
        detail: detail.into(),
        mend: Some(mend.into()),
    }
}

fn fail(check: &str, detail: impl Into<String>, mend: impl Into<String>) -> Finding {
    Finding {
        check: check.to_owned(),
        verdict: Verdict::Fail,
        detail: detail.into(),
        mend: Some(mend.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_went_back_is_found_by_what_was_written() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(CLOCK_FLOOR.0);
        assert_eq!(judge_clock(now, None).verdict, Verdict::Ok);
        assert_eq!(judge_clock(now, Some(now + FILE_TIME_SLACK)).verdict, Verdict::Ok);
        let back = judge_clock(now, Some(now + FILE_TIME_SLACK * 2));
        assert_eq!((back.verdict, back.mend.is_some()), (Verdict::Fail, true));
        assert_eq!(judge_clock(now - Duration::from_secs(1), None).verdict, Verdict::Fail);
    }

    #[test]
    fn agents_whose_programs_nothing_confines_are_warned_of() {
        let agent = |id: &str| AgentEntry::new(id.parse().expect("an id"), "gemma");
        let (mut shell, talker) = (agent("coder"), agent("talker"));
        shell.tools.push(BuiltIn::Shell);
        assert_eq!(check_agents([&talker].into_iter(), false), None);
        let warned = check_agents([&talker, &shell].into_iter(), false).expect("a finding");
        assert_eq!((warned.verdict, warned.mend.is_some()), (Verdict::Warn, true));
        assert!(warned.detail.ends_with(": coder"), "{}", warned.detail);
        let confined = check_agents([&shell].into_iter(), true).expect("a finding");
        assert_eq!(confined.verdict, Verdict::Ok);
    }
}
