//! Layers on devices, in llama-server's order and by its rule.

use mesh_identity::NodeId;
use serde::Serialize;

use super::needs::{Unit, sum};

/// How a model lies over devices: what `--rpc`, `-ngl` and `--tensor-split` say.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Split {
    /// The node that runs llama-server.
    pub host: NodeId,
    /// The nodes whose rpc-servers it uses, in the order of `--rpc`. The host is among them, last, when it has no GPU and lends
    /// its CPU to itself: llama-server leaves CPU devices out of a split.
    pub workers: Vec<NodeId>,
    /// The devices in llama-server's order: those of the workers, then the host's GPUs.
    pub devices: Vec<Part>,
    /// For `--tensor-split`, one number a device. Whole numbers of layers, unless the owner gave others.
    pub tensor_split: Vec<f32>,
    /// For `-ngl`: all layers and the output.
    pub gpu_layers: u32,
}

/// What lies on one device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Part {
    /// Whose device.
    pub node: NodeId,
    /// llama.cpp's name for it there, for example `CPU` or `CUDA0`.
    pub device: String,
    /// Its first layer.
    pub first_layer: usize,
    /// How many layers it has.
    pub layers: usize,
    /// Whether it has the output too.
    pub has_output: bool,
}

/// llama.cpp's rule (`llama_model_base::load_tensors`, in 32-bit floats as there): the device of each layer, and of the output
/// after them. `None` when the numbers are no shares (none, not finite, negative, all zero).
pub fn assign(tensor_split: &[f32], layers: usize) -> Option<Vec<usize>> {
    if tensor_split.iter().any(|share| !share.is_finite() || *share < 0.0) {
        return None;
    }
    let mut splits = Vec::with_capacity(tensor_split.len());
    let mut total = 0.0f32;
    for share in tensor_split {
        total += share;
        splits.push(total);
    }
    if !(total.is_finite() && total > 0.0) {
        return None;
    }
    for split in &mut splits {
        *split /= total;
    }
    let units = layers.checked_add(1)?;
    let last = tensor_split.len() - 1;
    let of = |unit: usize| {
        let place = unit as f32 / units as f32;
        splits.partition_point(|split| *split <= place).min(last)
    };
    Some((0..units).map(of).collect())
}

/// The shares of `--tensor-split 3,1`; `None` when a part is no number.
pub fn parse_shares(text: &str) -> Option<Vec<f32>> {
    // llama.cpp takes a slash as well.
    text.split([',', '/']).map(|share| share.trim().parse().ok()).collect()
}

/// Room of one device for units, and what it takes for itself.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Room {
    /// Its memory.
    pub(crate) memory: u64,
    /// What is used there whatever lies on it.
    pub(crate) fixed: u64,
    /// Whether it is filled through an rpc-server, which holds each tensor twice while it comes.
    pub(crate) is_remote: bool,
    /// Hundredths by which everything is counted larger.
    pub(crate) headroom_percent: u64,
}

impl Room {
    /// What the device needs for these units, headroom included.
    pub(crate) fn needed(&self, load: &Load) -> u64 {
        with_headroom(self.peak(load), self.headroom_percent)
    }

    /// Weights stay; keys, values and buffers come after the last tensor is in place.
    fn peak(&self, load: &Load) -> u64 {
        let later = load.kv.saturating_add(self.fixed);
        let transient = if self.is_remote { load.largest } else { 0 };
        load.weights.saturating_add(later.max(transient))
    }

    pub(crate) fn fits(&self, load: &Load) -> bool {
        self.needed(load) <= self.memory
    }
}

pub(crate) fn with_headroom(bytes: u64, percent: u64) -> u64 {
    let whole = u128::from(bytes).saturating_mul(100 + u128::from(percent)) / 100;
    u64::try_from(whole).unwrap_or(u64::MAX)
}

/// Units taken together.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Load {
    pub(crate) weights: u64,
    pub(crate) kv: u64,
    pub(crate) read: u64,
    pub(crate) operations: u64,
    pub(crate) largest: u64,
}

impl Load {
    pub(crate) fn of<'a>(units: impl Iterator<Item = &'a Unit>) -> Self {
        units.fold(Self::default(), |load, unit| load.and(unit))
    }

    pub(crate) fn and(self, unit: &Unit) -> Self {
        Self {
            weights: self.weights.saturating_add(unit.weights),
            kv: self.kv.saturating_add(unit.kv),
            read: self.read.saturating_add(unit.read),
            operations: self.operations.saturating_add(unit.operations),
            largest: self.largest.max(unit.largest),
        }
    }
}

/// Cuts the units into one run for each device, in order: each device has at least one unit and never more than it has room
/// for, and as near as that allows to its part of the memory. Returns how many each has. `None` when they do not fit.
///
/// Takes time proportional to units and devices.
pub(crate) fn allot(units: &[Unit], rooms: &[Room]) -> Option<Vec<usize>> {
    let latest = latest_starts(units, rooms)?;
    let wanted = wanted_ends(units, rooms);
    let mut counts = Vec::with_capacity(rooms.len());
    let mut start = 0;
    for (index, room) in rooms.iter().enumerate() {
        let after = rooms.len() - index - 1;
        let at_least = latest.get(index + 1).copied().unwrap_or(units.len()).max(start + 1);
        let at_most = (start + most(&units[start..], room)).min(units.len().checked_sub(after)?);
        if at_least > at_most {
            return None;
        }
        let end = wanted[index].clamp(at_least, at_most);
        counts.push(end - start);
        start = end;
    }
    (start == units.len()).then_some(counts)
}

/// For each device: the first unit that it and those after it can take, filled from the end.
fn latest_starts(units: &[Unit], rooms: &[Room]) -> Option<Vec<usize>> {
    let mut starts = vec![units.len(); rooms.len() + 1];
    let mut end = units.len();
    for (index, room) in rooms.iter().enumerate().rev() {
        let mut load = Load::default();
        while let Some(unit) = end.checked_sub(1).and_then(|last| units.get(last)) {
            // Each device before it needs one.
            let next = load.and(unit);
            if end <= index || !room.fits(&next) {
                break;
            }
            load = next;
            end -= 1;
        }
        starts[index] = end;
    }
    (starts[0] == 0).then_some(starts)
}

/// How many units from the first on fit into a room.
fn most(units: &[Unit], room: &Room) -> usize {
    let mut load = Load::default();
    let fit = |unit: &&Unit| {
        load = load.and(unit);
        room.fits(&load)
    };
    units.iter().take_while(fit).count()
}

/// Where each device's run ends when they are filled in proportion to their memory.
fn wanted_ends(units: &[Unit], rooms: &[Room]) -> Vec<usize> {
    let size = |unit: &Unit| unit.weights.saturating_add(unit.kv);
    let free = |room: &Room| room.memory.saturating_sub(with_headroom(room.fixed, room.headroom_percent));
    let (total, all) = (sum(units.iter().map(size)), sum(rooms.iter().map(free)).max(1));
    let (mut unit, mut filled, mut upto) = (0, 0u64, 0u64);
    rooms
        .iter()
        .map(|room| {
            upto = upto.saturating_add(free(room));
            let boundary = u128::from(total) * u128::from(upto) / u128::from(all);
            // The unit in which the boundary lies goes to where most of it is.
            while let Some(next) = units.get(unit) {
                if u128::from(filled) + u128::from(size(next) / 2) > boundary {
                    break;
                }
                filled = filled.saturating_add(size(next));
                unit += 1;
            }
            unit
        })
        .collect()
}
