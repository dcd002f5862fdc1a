//! What a program that a tool started may reach of the disk.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// The folders and files that a program may use; everything else on the disk does not exist for it.
///
/// Enforced by Landlock on Linux 5.13 or later; elsewhere a program reaches what the node's user does. With Linux 6.12 or
/// later it can also signal only processes of its own making. The network is not restricted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Confinement {
    /// To read and to execute.
    pub read: Vec<PathBuf>,
    /// To change too.
    pub write: Vec<PathBuf>,
}

/// Where a system keeps what everybody needs. What is missing here is left out.
const SYSTEM: &[&str] = &[
    "/bin", "/etc", "/lib", "/lib32", "/lib64", "/libx32", "/nix", "/opt", "/proc", "/run", "/sbin", "/snap",
    "/sys", "/usr", "/var",
];
const SCRATCH: &[&str] = &["/dev", "/tmp", "/var/tmp"];
/// Where people's tool chains lie in their homes, without the files beside them that hold keys.
const TOOLCHAINS: &[&str] = &[
    ".bun",
    ".cargo/bin",
    ".cargo/config.toml",
    ".cargo/env",
    ".deno",
    ".gitconfig",
    ".local/bin",
    ".local/lib",
    ".nvm",
    ".pyenv",
    ".rustup",
    "go/bin",
];
/// What tool chains write to.
const CACHES: &[&str] = &[".cache", ".cargo/git", ".cargo/registry", ".npm/_cacache", "go/pkg"];

impl Confinement {
    /// A workspace and temporary folders to write to, the system and the home's tool chains to read.
    pub fn of_workspace(workspace: &Path, home: Option<&Path>) -> Self {
        let at_home = |names: &[&str]| -> Vec<PathBuf> {
            home.map(|home| names.iter().map(|name| home.join(name)).collect()).unwrap_or_default()
        };
        let mut read: Vec<PathBuf> = SYSTEM.iter().map(PathBuf::from).collect();
        read.extend(at_home(TOOLCHAINS));
        let mut write: Vec<PathBuf> = SCRATCH.iter().map(PathBuf::from).collect();
        write.extend(at_home(CACHES));
        write.push(workspace.to_owned());
        Self { read, write }
    }

    /// Whether this system confines programs at all. Changes nothing.
    #[cfg(target_os = "linux")]
    pub fn is_enforced() -> bool {
        use landlock::{ABI, Access, AccessFs, CompatLevel, Compatible, Ruleset, RulesetAttr};
        let strict = Ruleset::default().set_compatibility(CompatLevel::HardRequirement);
        strict.handle_access(AccessFs::from_all(ABI::V1)).and_then(|ruleset| ruleset.create()).is_ok()
    }

    /// Whether this system confines programs at all.
    #[cfg(not(target_os = "linux"))]
    pub fn is_enforced() -> bool {
        false
    }

    /// Confines this process and all that it starts, for good.
    #[cfg(target_os = "linux")]
    pub(crate) fn enter(&self) -> Result<(), landlock::RulesetError> {
        use landlock::{
            ABI, Access, AccessFs, Ruleset, RulesetAttr, RulesetCreatedAttr, Scope, path_beneath_rules,
        };
        // What an older kernel does not know is left out of it.
        let abi = ABI::V6;
        Ruleset::default()
            .handle_access(AccessFs::from_all(abi))?
            .scope(Scope::from_all(abi))?
            .create()?
            .add_rules(path_beneath_rules(&self.read, AccessFs::from_read(abi)))?
            .add_rules(path_beneath_rules(&self.write, AccessFs::from_all(abi)))?
            .restrict_self()?;
        Ok(())
    }

    /// This system has no such thing.
    #[cfg(not(target_os = "linux"))]
    pub(crate) fn enter(&self) -> Result<(), std::convert::Infallible> {
        Ok(())
    }
}
