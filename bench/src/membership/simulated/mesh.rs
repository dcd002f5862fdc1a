//! Simulated meshes to measure on.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Result, ensure};
use mesh_gossip::proto::sim::{Sim, Weather};
use mesh_gossip::{Config, State};

/// Frames take between 1 and 20 ms, so that they overtake each other.
pub(super) fn weather() -> Weather {
    Weather::default()
}

/// Until all links stand and the news of the beginning are over.
const SETTLE: Duration = Duration::from_secs(10);

/// The configuration of a node that may know as many as there are.
pub(super) fn config(nodes: usize) -> Config {
    let default = Config::default();
    Config { nodes_max: default.nodes_max.max(nodes * 2), ..default }
}

/// A mesh whose nodes have been together for long, on a network without loss.
pub(super) fn settled(seed: u64, nodes: usize, weather: Weather) -> Result<Sim> {
    let mut sim = Sim::new(seed, nodes, weather, &config(nodes));
    sim.keep_events(|_| false);
    sim.acquaint();
    sim.run(SETTLE);
    let linked = (0..nodes).map(|node| sim.links(node).count()).min().unwrap_or_default();
    ensure!(linked >= 2, "a simulated node has no links after {SETTLE:?} (seed {seed})");
    Ok(sim)
}

/// Whether a node sends requests to another one.
pub(super) fn routes_to(sim: &mut Sim, observer: usize, subject: usize) -> bool {
    sim.state(observer, subject) == Some(State::Alive)
}

/// Runs `measure` once for each seed, on all cores.
pub(super) fn for_each_seed<T: Send>(
    seeds: u64,
    measure: impl Fn(u64) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    let next = AtomicUsize::new(0);
    let seeds = usize::try_from(seeds)?;
    let workers = std::thread::available_parallelism()?.get().min(seeds);
    std::thread::scope(|scope| {
        let work = || {
            let mut done = Vec::new();
            loop {
                let seed = next.fetch_add(1, Ordering::Relaxed);
                if seed >= seeds {
                    return Ok(done);
                }
                done.push((seed, measure(seed as u64 + 1)?));
            }
        };
        let workers: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        let done: Vec<Result<Vec<(usize, T)>>> = workers
            .into_iter()
            .map(|worker| worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect();
        let mut all: Vec<(usize, T)> =
            done.into_iter().collect::<Result<Vec<_>>>()?.into_iter().flatten().collect();
        all.sort_by_key(|(seed, _)| *seed);
        Ok(all.into_iter().map(|(_, figure)| figure).collect())
    })
}

/// Memory of this process that is in use, in bytes.
pub(super) fn memory() -> Result<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm")?;
    let pages: u64 = statm.split_whitespace().nth(1).unwrap_or_default().parse()?;
    Ok(pages * rustix::param::page_size() as u64)
}
