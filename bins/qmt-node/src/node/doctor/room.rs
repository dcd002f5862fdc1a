//! Whether there is room: on the disks, and in memory for the models that are asked for.

use std::path::{Path, PathBuf};

use mesh_control::Finding;
use mesh_inference::memory::Memory;
use sysinfo::System;

use super::{fail, ok, warn};
use crate::config::Config;

/// Below this much free space in the home folder writes will soon fail, bytes.
const FREE_BYTES_LOW: u64 = 200_000_000;
/// Below this, no model can be downloaded, bytes: the smallest that are of use take about as much.
const MODEL_ROOM_LOW: u64 = 2_000_000_000;
/// Without swap and below this much free memory the system ends programs, bytes.
const MEMORY_LOW: u64 = 500_000_000;

/// The free space of one file system, and what is kept on it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Space {
    folder: PathBuf,
    /// What this program writes itself is there.
    holds_data: bool,
    /// Models are there.
    holds_models: bool,
    free: u64,
}

/// Memory as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Room {
    /// What a further model may take.
    pub(super) available: u64,
    pub(super) swap: u64,
}

/// Each file system once.
pub(super) fn check_disks(config: &Config) -> Vec<Finding> {
    let mut spaces: Vec<(u64, Space)> = Vec::new();
    let mut findings = Vec::new();
    let data = [Some(config.home.as_path()), config.sessions_db.parent()].into_iter().flatten();
    let folders = data.map(|folder| (folder, true));
    for (folder, holds_data) in
        folders.chain(config.inference.model_dirs.iter().map(|dir| (dir.as_path(), false)))
    {
        match space(folder, holds_data) {
            Ok((device, more)) => match spaces.iter_mut().find(|(known, _)| *known == device) {
                Some((_, known)) => known.holds_models |= more.holds_models,
                None => spaces.push((device, more)),
            },
            Err(error) => findings.push(warn(
                "disk",
                format!("{}: {error}", folder.display()),
                format!("see `df {}`", folder.display()),
            )),
        }
    }
    findings.extend(spaces.iter().map(|(_, space)| judge_space(space)));
    findings
}

fn space(folder: &Path, holds_data: bool) -> std::io::Result<(u64, Space)> {
    let existing = folder.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    let stat = rustix::fs::statvfs(existing)?;
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    let device = rustix::fs::stat(existing)?.st_dev;
    Ok((device, Space { folder: existing.to_owned(), holds_data, holds_models: !holds_data, free }))
}

fn judge_space(space: &Space) -> Finding {
    let at = space.folder.display();
    let text = format!("{} MB free at {at}", space.free / 1_000_000);
    let mend = |why: &str| format!("`du -xh --max-depth=1 {at} | sort -h` shows what takes it; {why}");
    if space.holds_data && space.free < FREE_BYTES_LOW {
        fail("disk", text, mend("without room nobody can be admitted and nothing is remembered"))
    } else if space.holds_models && space.free < MODEL_ROOM_LOW {
        warn("disk", text, mend("without room no model can be downloaded"))
    } else {
        ok("disk", text)
    }
}

/// Memory now, what models hold already taken off; none where the platform does not tell.
pub(super) fn room(cap: Option<u64>, held: u64) -> Option<Room> {
    let memory = Memory::read(cap)?;
    let mut system = System::new().ok()?;
    system.refresh_memory();
    Some(Room { available: memory.available(held), swap: system.total_swap() })
}

/// `wanted` are models that are asked for and do not run yet, with the bytes of their files.
pub(super) fn judge_memory(room: Room, wanted: &[(String, u64)]) -> Finding {
    let gb = |bytes: u64| format!("{}.{} GB", bytes / 1_000_000_000, bytes / 100_000_000 % 10);
    let free = gb(room.available);
    let all: u64 = wanted.iter().fold(0, |sum, (_, bytes)| sum.saturating_add(*bytes));
    if let Some((name, bytes)) = wanted.iter().find(|(_, bytes)| *bytes > room.available) {
        return fail(
            "memory",
            format!("{name} takes more than {}, and {free} are left for models here", gb(*bytes)),
            format!(
                "serve a smaller one, or one of fewer bits a weight; or let members lend their memory: `qmt-cli plan {name}`"
            ),
        );
    }
    if all > room.available {
        return warn(
            "memory",
            format!("the models that are asked for take more than {} together; {free} are left", gb(all)),
            "ask for fewer of them with --model, or serve some on another node",
        );
    }
    if room.swap == 0 && room.available < MEMORY_LOW {
        return warn(
            "memory",
            format!("{free} left and no swap: the system may end programs"),
            "end something, or make swap: `sudo fallocate -l 4G /swapfile && sudo chmod 600 /swapfile && sudo mkswap /swapfile && sudo swapon /swapfile`",
        );
    }
    let swap = if room.swap == 0 { "no swap".to_owned() } else { format!("{} of swap", gb(room.swap)) };
    ok("memory", format!("{free} left for models, {swap}"))
}

#[cfg(test)]
mod tests {
    use mesh_control::Verdict;

    use super::*;

    #[test]
    fn a_disk_is_judged_by_what_is_kept_on_it() {
        let judged = |holds_data, holds_models, free| {
            judge_space(&Space { folder: "/x".into(), holds_data, holds_models, free }).verdict
        };
        assert_eq!(judged(true, true, FREE_BYTES_LOW - 1), Verdict::Fail);
        assert_eq!(judged(true, false, FREE_BYTES_LOW), Verdict::Ok);
        for holds_data in [true, false] {
            assert_eq!(judged(holds_data, true, MODEL_ROOM_LOW - 1), Verdict::Warn);
            assert_eq!(judged(holds_data, true, MODEL_ROOM_LOW), Verdict::Ok);
        }
    }

    #[test]
    fn memory_is_judged_by_what_is_to_run() {
        let room = Room { available: 4_000_000_000, swap: 0 };
        let model = |name: &str, bytes| (name.to_owned(), bytes);
        let judged = |room, wanted: &[(String, u64)]| judge_memory(room, wanted);
        assert_eq!(judged(room, &[]).verdict, Verdict::Ok);
        let large = judged(room, &[model("small", 1), model("large", 4_000_000_001)]);
        assert_eq!((large.verdict, large.detail.contains("large")), (Verdict::Fail, true), "{large:?}");
        assert_eq!(
            judged(room, &[model("a", 3_000_000_000), model("b", 2_000_000_000)]).verdict,
            Verdict::Warn
        );
        let low = Room { available: MEMORY_LOW - 1, swap: 0 };
        assert_eq!(judged(low, &[]).verdict, Verdict::Warn);
        assert_eq!(judged(Room { swap: 1, ..low }, &[]).verdict, Verdict::Ok);
    }
}
