//! What happens to real processes: `qmt-node`, many of them on this machine.

mod idle;
mod kill;
mod revoke;

use std::path::Path;

use self::idle::Idle;
use self::kill::Kills;
use self::revoke::Cuts;
use super::Effort;
use crate::report::{Lacking, Report, lack};
use crate::transport::laboratory::guarded;

/// Nodes of the mesh that is measured.
const NODES: usize = 30;

/// What cannot be measured is left out, and the report says so.
pub(super) async fn measure(report: &mut Report, effort: &Effort, bin_dir: &Path) {
    let program = bin_dir.join("qmt-node");
    match guarded(Kills::measure(&program, effort.kills)).await {
        Ok(kills) => kills.tell(report),
        Err(error) => lack(report, Kills::lacking(), &error),
    }
    match guarded(Cuts::measure(&program, effort.revocations)).await {
        Ok(cuts) => cuts.tell(report),
        Err(error) => lack(report, Cuts::lacking(), &error),
    }
    match guarded(Idle::measure(&program, effort.idle_time)).await {
        Ok(idle) => idle.tell(report),
        Err(error) => lack(report, Idle::lacking(), &error),
    }
}

pub(super) fn lacking() -> Lacking {
    [Kills::lacking(), Cuts::lacking(), Idle::lacking()].concat()
}
