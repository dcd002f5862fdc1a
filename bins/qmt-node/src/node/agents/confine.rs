//! What of the disk the tools of agents reach: never the files of the node itself.

use std::path::{Path, PathBuf};

use mesh_sessions::tools::Confinement;

use crate::config::{AgentEntry, Config, Identity};

/// Folders below which workspaces of agents that name none are made, in the node's home.
pub(super) const WORK_FOLDER: &str = "work";

/// The files of a node that no tool is to reach: its home, and what its configuration has put elsewhere.
pub(super) struct Hidden {
    files: Vec<PathBuf>,
    /// In the home, and yet for tools.
    work: PathBuf,
}

impl Hidden {
    pub(super) fn of(config: &Config) -> Self {
        let mut files = vec![config.home.clone()];
        files.extend(config.file.clone());
        if let Identity::File(key) = &config.identity {
            files.push(key.clone());
        }
        for ending in ["", "-wal", "-shm"] {
            let mut name = config.sessions_db.clone().into_os_string();
            name.push(ending);
            files.push(name.into());
        }
        files.extend(config.relay.iter().filter_map(|relay| Some(relay.tls.as_ref()?.1.clone())));
        files.extend(config.agent_channel.iter().map(|channel| channel.tls.key_path.clone()));
        let work = real(&config.home.join(WORK_FOLDER));
        Self { files: files.iter().map(|file| real(file)).collect(), work }
    }

    /// Why tools may not work in this folder.
    pub(super) fn forbids(&self, workspace: &Path) -> Option<String> {
        let workspace = real(workspace);
        if workspace.starts_with(&self.work) && workspace != self.work {
            return None;
        }
        let held =
            self.files.iter().find(|file| file.starts_with(&workspace) || workspace.starts_with(file))?;
        Some(format!("it shares files with {}, which belongs to the node", held.display()))
    }

    /// These paths without what is hidden: a folder above it is taken apart into its entries.
    fn cut_out(&self, paths: Vec<PathBuf>) -> Vec<PathBuf> {
        let mut kept = Vec::new();
        let mut open = paths;
        while let Some(path) = open.pop() {
            let at = real(&path);
            if self.files.iter().any(|file| at.starts_with(file)) {
                continue;
            }
            if !self.files.iter().any(|file| file.starts_with(&at)) {
                kept.push(path);
                continue;
            }
            let entries = std::fs::read_dir(&at).into_iter().flatten().flatten();
            // A link is followed to what it leads to, which may be what is hidden.
            open.extend(entries.map(|entry| entry.path()).filter(|entry| entry.exists()));
        }
        kept.sort();
        kept
    }
}

/// What the processes of an agent's tools reach. Blocking.
pub(super) fn confinement(
    entry: &AgentEntry,
    workspace: &Path,
    confined: bool,
    hidden: &Hidden,
) -> Confinement {
    let everything = || Confinement { read: vec!["/".into()], write: vec!["/".into()] };
    let usual = || Confinement::of_workspace(workspace, std::env::home_dir().as_deref());
    let mut reached = if confined { usual() } else { everything() };
    reached.read.extend(entry.read.iter().cloned());
    reached.write.retain(|path| path != workspace);
    reached.write.extend(entry.write.iter().cloned());
    let mut reached =
        Confinement { read: hidden.cut_out(reached.read), write: hidden.cut_out(reached.write) };
    reached.write.push(workspace.to_owned());
    reached
}

/// The path without links, as far as it exists.
fn real(path: &Path) -> PathBuf {
    if let Ok(real) = path.canonicalize() {
        return real;
    }
    match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) => real(parent).join(name),
        _ => path.to_owned(),
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    fn hidden(files: &[&Path], work: &Path) -> Hidden {
        Hidden { files: files.iter().map(|file| real(file)).collect(), work: real(work) }
    }

    #[test]
    fn a_folder_above_what_is_hidden_is_taken_apart() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().canonicalize().unwrap().join(name);
        for name in ["etc", "var/lib/node/keys", "var/lib/other", "var/log"] {
            std::fs::create_dir_all(at(name)).unwrap();
        }
        std::os::unix::fs::symlink(at("var/lib/node"), at("var/link")).unwrap();
        let hidden = hidden(&[&at("var/lib/node")], &at("var/lib/node/work"));
        let kept = hidden.cut_out(vec![at("etc"), at("var"), at("var/lib/node/keys"), at("missing")]);
        assert_eq!(kept, [at("etc"), at("missing"), at("var/lib/other"), at("var/log")]);
    }

    #[test]
    fn a_workspace_shares_nothing_with_the_node_but_its_own_folder() {
        let folder = tempfile::tempdir().unwrap();
        let home = folder.path().join("home");
        std::fs::create_dir_all(home.join("work/coder")).unwrap();
        std::fs::create_dir_all(folder.path().join("project")).unwrap();
        let hidden = hidden(&[&home, &folder.path().join("etc/node.toml")], &home.join("work"));
        assert_eq!(hidden.forbids(&folder.path().join("project")), None);
        assert_eq!(hidden.forbids(&home.join("work/coder")), None);
        std::os::unix::fs::symlink(&home, folder.path().join("project/sly")).unwrap();
        for bad in ["", "home", "home/work", "home/recovery", "etc", "project/sly"] {
            let why = hidden.forbids(&folder.path().join(bad));
            assert!(why.is_some_and(|why| why.contains("belongs to the node")), "{bad}");
        }
    }
}
