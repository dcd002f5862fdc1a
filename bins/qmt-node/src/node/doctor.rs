//! What is missing or wrong on this machine, and the command that mends it.

use std::path::Path;
use std::time::Instant;

use mesh_control::{Finding, Verdict};
use mesh_identity::{UnixTime, key_file};
use mesh_inference::catalogue::Catalogue;
use mesh_inference::llama::LlamaCpp;
use mesh_sessions::tools::Confinement;

use super::agents::all_entries;
use super::{Node, audit, chain, copied, renew};
use crate::config::{AgentEntry, BuiltIn, Config, Identity};

/// Below this much free space in the home folder writes will soon fail, bytes.
const FREE_BYTES_LOW: u64 = 200_000_000;
/// Below this limit of open files a busy gateway refuses callers.
const FILES_LOW: u64 = 1_024;
/// A clock before this was never set: 2026-01-01.
const CLOCK_FLOOR: UnixTime = UnixTime(1_767_225_600);
/// A grant is renewed at half its life; one that still is not after this has nobody to renew it, seconds.
const RENEWAL_LATE_SECS: u64 = 3 * 3_600;

const RUNTIME_MEND: &str = "run `scripts/setup`, or name the folder of llama-server with --bin-dir";

/// Findings of [`diagnose`].
pub type Diagnosis = Vec<Finding>;

/// Looks at everything that can be seen without a running node. Changes nothing.
pub async fn diagnose(config: &Config) -> Diagnosis {
    let mut findings = vec![
        check_home(&config.home),
        check_disk(&config.home),
        check_key(&config.identity),
        check_clock(),
        check_files(),
    ];
    let runtime = check_runtime(config).await;
    let runtime_missing = runtime.verdict == Verdict::Fail;
    findings.push(runtime);
    findings.push(check_models(config, runtime_missing));
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
        let mut findings = diagnose(self.config()).await;
        findings.push(ok(
            "node",
            format!("runs as process {}, gateway at {}", std::process::id(), self.inner.gateway.local_addr()),
        ));
        findings.push(self.check_scopes());
        findings.extend(
            self.ended_memberships().into_iter().map(|sentence| fail("mesh", sentence, renew::END_MEND)),
        );
        findings.push(self.check_address());
        findings.extend(self.check_relays().await);
        findings.push(self.check_peers());
        findings.extend(self.check_backends());
        let copied = self.inner.copied_keys.sentences(Instant::now()).into_iter();
        findings.extend(copied.map(|sentence| fail("key", sentence, copied::MEND)));
        findings.push(match self.trail_fault() {
            Some(fault) => warn("audit trail", fault, audit::MEND),
            None => ok("audit trail", "each row follows from the one before"),
        });
        findings
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

fn check_disk(home: &Path) -> Finding {
    let existing = home.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    match rustix::fs::statvfs(existing) {
        Ok(stat) => {
            let free = stat.f_bavail.saturating_mul(stat.f_frsize);
            let text = format!("{} MB free at {}", free / 1_000_000, existing.display());
            if free < FREE_BYTES_LOW {
                fail(
                    "disk",
                    text,
                    "free some space: without it nobody can be admitted and nothing is remembered",
                )
            } else {
                ok("disk", text)
            }
        }
        Err(error) => warn("disk", format!("{}: {error}", existing.display()), "check the file system"),
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

fn check_clock() -> Finding {
    let now = UnixTime::now();
    if now < CLOCK_FLOOR {
        return fail(
            "clock",
            format!("it says {now}; invites and grants will seem to lie in the future"),
            "set the clock, for example with NTP",
        );
    }
    ok("clock", now.to_string())
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
                "run `scripts/setup` for a first model, or name a GGUF file with --model",
            );
        }
    }
    let count = catalogue.models().len();
    let dirs: Vec<String> = config.inference.model_dirs.iter().map(|dir| dir.display().to_string()).collect();
    if count == 0 {
        let mend = "run `scripts/setup` for a first model, or put a GGUF file there";
        return warn("models", format!("none in {}", dirs.join(", ")), mend);
    }
    let note = if runtime_missing { "; llama.cpp is needed to serve them" } else { "" };
    ok("models", format!("{count} in {}{note}", dirs.join(", ")))
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
