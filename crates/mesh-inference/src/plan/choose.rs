//! Which machines a split takes.

use mesh_identity::NodeId;

use super::machine::{Device, Link, Machine};
use super::needs::{Needs, RPC_SERVER_BYTES, Unit, sum};
use super::predict::{Prediction, Step, cost, predict};
use super::split::{Load, Part, Room, Split, allot, assign, with_headroom};
use super::{Alternative, LEFT_OUT_SHOWN, LeftOut, Refusal, Share, Unfit, Way, Wishes};

/// Machines that are tried in the place of each chosen one: the cheapest ones.
const EXCHANGES_CONSIDERED: usize = 64;

/// llama.cpp schedules over 16 backends (`GGML_SCHED_MAX_BACKENDS`), and the host's CPU is always one.
const DEVICES_MAX: usize = 15;

/// A device in llama-server's order.
struct Slot<'a> {
    machine: &'a Machine,
    device: Device,
    room: Room,
    /// The way to its rpc-server; `None` for a GPU of the host.
    rpc: Option<Link>,
}

/// A split that fits.
struct Found {
    split: Split,
    shares: Vec<Share>,
    prediction: Prediction,
}

/// What all attempts have in common.
struct Choice<'a> {
    needs: &'a Needs,
    units: Vec<Unit>,
    host: &'a Machine,
    wishes: &'a Wishes,
    /// What the host needs beside its layers, headroom included.
    host_fixed: u64,
}

/// Where the host's own devices come in the order.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Own {
    /// As llama-server has its GPUs, and best for a CPU: what the last device gives back crosses no network.
    Last,
    /// For a CPU too small for the output.
    First,
    Without,
}

/// The split with `host` at its head, and who takes no part.
pub(crate) fn split(
    needs: &Needs,
    host: &Machine,
    others: &[&Machine],
    wishes: &Wishes,
) -> (Alternative, Vec<LeftOut>) {
    let draft = needs.draft.as_ref().map_or(0, |draft| draft.bytes);
    let buffers = needs.split_host_compute.saturating_add(needs.server);
    let host_bytes = needs.input.saturating_add(buffers).saturating_add(draft);
    let choice = Choice {
        needs,
        units: needs.units().copied().collect(),
        host,
        wishes,
        host_fixed: with_headroom(host_bytes, wishes.headroom_percent),
    };
    let (workers, left_out) = choice.workers(others);
    let found = choice.possible().and_then(|()| choice.fewest(&workers));
    let alternative = match found {
        Ok(found) => Alternative {
            way: Way::Split(found.split),
            at: host.name.clone(),
            shares: found.shares,
            prediction: Some(found.prediction),
            refusal: None,
        },
        Err(refusal) => Alternative {
            way: Way::NoSplit,
            at: host.name.clone(),
            shares: Vec::new(),
            prediction: None,
            refusal: Some(refusal),
        },
    };
    (alternative, left_out)
}

impl<'a> Choice<'a> {
    fn possible(&self) -> Result<(), Refusal> {
        if !self.host.has_file {
            return Err(Refusal::NoFile);
        }
        if !self.host.serves {
            return Err(Refusal::DoesNotServe);
        }
        if self.host.build.is_empty() {
            return Err(Refusal::NoRuntime);
        }
        if self.host_fixed > self.host.memory {
            return Err(Refusal::Memory { needed: self.host_fixed, memory: self.host.memory });
        }
        Ok(())
    }

    /// Those that can take a layer, largest first, then by id.
    fn workers(&self, others: &[&'a Machine]) -> (Vec<&'a Machine>, Vec<LeftOut>) {
        let (mut workers, mut left_out) = (Vec::new(), Vec::new());
        for other in others.iter().copied() {
            match self.unfit(other) {
                None => workers.push(other),
                Some(why) if left_out.len() < LEFT_OUT_SHOWN => {
                    left_out.push(LeftOut { node: other.id, machine: other.name.clone(), why });
                }
                Some(_) => {}
            }
        }
        workers.sort_by_key(|worker| (std::cmp::Reverse(worker.device_memory()), worker.id));
        (workers, left_out)
    }

    fn unfit(&self, other: &Machine) -> Option<Unfit> {
        if !other.lends {
            return Some(Unfit::LendsNothing);
        }
        if other.build != self.host.build {
            return Some(Unfit::OtherBuild { ours: self.host.build.clone(), theirs: other.build.clone() });
        }
        let fits = |device: Device| {
            let room = self.room(device.memory, true);
            self.units.iter().any(|unit| room.fits(&Load::of(std::iter::once(unit))))
        };
        // A split gives each of its devices something.
        (!other.devices().into_iter().all(fits)).then_some(Unfit::TooSmall)
    }

    fn room(&self, memory: u64, is_remote: bool) -> Room {
        let process = if is_remote { RPC_SERVER_BYTES } else { 0 };
        Room {
            memory,
            fixed: self.needs.split_compute.saturating_add(process),
            is_remote,
            headroom_percent: self.wishes.headroom_percent,
        }
    }

    /// The fewest workers that suffice, and the fastest choice of so many.
    fn fewest(&self, workers: &[&'a Machine]) -> Result<Found, Refusal> {
        if workers.is_empty() {
            return Err(Refusal::NoWorkers);
        }
        let most = workers.len().min(self.units.len()).min(DEVICES_MAX);
        let counts = match self.wishes.workers {
            Some(wanted) if wanted.get() > most => return Err(self.too_small(workers)),
            Some(wanted) => wanted.get()..=wanted.get(),
            None => 1..=most,
        };
        for count in counts {
            let mut chosen: Vec<&Machine> = workers[..count].to_vec();
            if let Some(found) = self.lay_out(&chosen) {
                return Ok(self.exchange(workers, &mut chosen, found));
            }
        }
        Err(self.too_small(workers))
    }

    fn too_small(&self, workers: &[&Machine]) -> Refusal {
        match &self.wishes.tensor_split {
            Some(shares) => Refusal::Shares { given: shares.len() },
            None => Refusal::TooSmall { workers: workers.len() },
        }
    }

    /// Puts cheaper machines in the place of chosen ones, as long as that makes it faster.
    fn exchange(&self, workers: &[&'a Machine], chosen: &mut [&'a Machine], mut best: Found) -> Found {
        let share = self.needs.read() / (chosen.len() as u64 + 1);
        let price = |machine: &Machine| {
            let slowest = machine.devices().into_iter().map(|device| device.speed);
            let slowest = slowest.min_by(|a, b| a.bytes_per_second.total_cmp(&b.bytes_per_second));
            cost(self.needs, slowest.unwrap_or(machine.speed), machine.link, share)
        };
        let mut cheapest: Vec<&Machine> = workers.to_vec();
        cheapest.sort_by_key(|machine| (price(machine), machine.id));
        for candidate in cheapest.into_iter().take(EXCHANGES_CONSIDERED) {
            if chosen.iter().any(|machine| machine.id == candidate.id) {
                continue;
            }
            let dearer = (0..chosen.len()).filter(|at| price(chosen[*at]) > price(candidate));
            let Some(at) = dearer.max_by_key(|at| (price(chosen[*at]), chosen[*at].id)) else { continue };
            let before = std::mem::replace(&mut chosen[at], candidate);
            match self.lay_out(chosen) {
                Some(found) if is_faster(&found, &best) => best = found,
                _ => chosen[at] = before,
            }
        }
        best
    }

    /// The layers over these workers and the host, if they fit: with the host's own share, else without.
    fn lay_out(&self, workers: &[&'a Machine]) -> Option<Found> {
        // The owner's shares are for the order that the owner knows.
        let has_shares = self.wishes.tensor_split.is_some();
        let orders = [Own::Last, Own::First, Own::Without].into_iter();
        orders.filter(|own| !has_shares || *own != Own::First).find_map(|own| self.lay_out_with(workers, own))
    }

    fn lay_out_with(&self, workers: &[&'a Machine], own: Own) -> Option<Found> {
        let slots = self.slots(workers, own)?;
        let unused = if own == Own::Without { self.host.gpus.len() } else { 0 };
        if slots.len() + unused > DEVICES_MAX {
            return None;
        }
        // A quick look before the careful one.
        let rooms: Vec<Room> = slots.iter().map(|slot| slot.room).collect();
        let free = sum(rooms.iter().map(|room| room.memory));
        let load = Load::of(self.units.iter());
        if with_headroom(load.weights.saturating_add(load.kv), self.wishes.headroom_percent) > free {
            return None;
        }
        let counts = match &self.wishes.tensor_split {
            Some(shares) => self.counts_wished(shares, &rooms)?,
            None => allot(&self.units, &rooms)?,
        };
        Some(self.found(&slots, &counts, own))
    }

    /// Devices in llama-server's order: those of other machines, the smaller machines first, so that the output, which is often
    /// the largest part, lies on a larger one; then the host's.
    fn slots(&self, workers: &[&'a Machine], own: Own) -> Option<Vec<Slot<'a>>> {
        let mut ordered: Vec<&Machine> = workers.to_vec();
        ordered.sort_by_key(|worker| (worker.device_memory(), worker.id));
        let theirs = ordered.into_iter().flat_map(|machine| {
            machine.devices().into_iter().map(move |device| (machine, device, Some(machine.link)))
        });
        let mut slots: Vec<Slot<'_>> =
            theirs.map(|(machine, device, rpc)| self.slot(machine, device, rpc)).collect();
        let is_cpu = self.host.gpus.is_empty();
        let mut mine: Vec<Slot<'_>> = Vec::new();
        for mut device in self.host.devices() {
            if is_cpu {
                device.memory = device.memory.saturating_sub(self.host_fixed);
            }
            let rpc = is_cpu.then_some(Link::HERE);
            mine.push(self.slot(self.host, device, rpc));
        }
        match own {
            Own::Last => slots.extend(mine),
            // llama-server puts its own GPUs last.
            Own::First if !is_cpu => return None,
            Own::First => {
                mine.append(&mut slots);
                slots = mine;
            }
            Own::Without => {}
        }
        Some(slots)
    }

    fn slot(&self, machine: &'a Machine, device: Device, rpc: Option<Link>) -> Slot<'a> {
        let room = self.room(device.memory, rpc.is_some());
        Slot { machine, device, room, rpc }
    }

    /// What llama-server makes of the owner's shares, if all of it fits.
    fn counts_wished(&self, shares: &[f32], rooms: &[Room]) -> Option<Vec<usize>> {
        if shares.len() != rooms.len() {
            return None;
        }
        let mut counts = vec![0usize; rooms.len()];
        for device in assign(shares, self.needs.layers.len())? {
            counts[device] += 1;
        }
        let mut start = 0;
        for (count, room) in counts.iter().zip(rooms) {
            let load = Load::of(self.units[start..start + count].iter());
            if *count > 0 && !room.fits(&load) {
                return None;
            }
            start += count;
        }
        Some(counts)
    }

    fn found(&self, slots: &[Slot<'a>], counts: &[usize], own: Own) -> Found {
        let (mut devices, mut shares, mut steps) = (Vec::new(), vec![self.host_share()], Vec::new());
        let mut start = 0;
        for (slot, count) in slots.iter().zip(counts.iter().copied()) {
            let load = Load::of(self.units[start..start + count].iter());
            let has_output = count > 0 && start + count == self.units.len();
            let layers = count - usize::from(has_output);
            devices.push(Part {
                node: slot.machine.id,
                device: slot.device.name.clone(),
                first_layer: start,
                layers,
                has_output,
            });
            shares.push(self.share(slot, layers, &load));
            steps.push(Step { load, speed: slot.device.speed, rpc: slot.rpc });
            start += count;
        }
        let mut tensor_split = match &self.wishes.tensor_split {
            Some(wished) => wished.clone(),
            // Whole numbers of layers come back as they are by llama.cpp's rule, see `assign`.
            None => counts.iter().map(|count| f32::from(u16::try_from(*count).unwrap_or(u16::MAX))).collect(),
        };
        if own == Own::Without {
            // Its GPUs are there all the same, with nothing on them.
            for gpu in &self.host.gpus {
                tensor_split.push(0.0);
                devices.push(Part {
                    node: self.host.id,
                    device: gpu.name.clone(),
                    first_layer: self.needs.layers.len(),
                    layers: 0,
                    has_output: false,
                });
            }
        }
        let split = Split {
            host: self.host.id,
            workers: order_of_workers(slots),
            devices,
            tensor_split,
            gpu_layers: u32::try_from(self.units.len()).unwrap_or(u32::MAX),
        };
        Found { split, shares, prediction: predict(self.needs, &steps) }
    }

    fn host_share(&self) -> Share {
        let draft = self.needs.draft.as_ref().map_or(0, |draft| draft.bytes);
        Share {
            node: self.host.id,
            machine: self.host.name.clone(),
            device: "host".into(),
            layers: None,
            weights: self.needs.input,
            kv: 0,
            buffers: self.needs.split_host_compute.saturating_add(self.needs.server),
            draft,
            needed: self.host_fixed,
            memory: self.host.memory,
        }
    }

    fn share(&self, slot: &Slot<'_>, layers: usize, load: &Load) -> Share {
        let needed = slot.room.needed(load);
        Share {
            node: slot.machine.id,
            machine: slot.machine.name.clone(),
            device: slot.device.name.clone(),
            layers: Some(layers),
            weights: load.weights,
            kv: load.kv,
            // What is above weights and cache, so that the sum is what it needs at its peak.
            buffers: slot.room.fixed.max(load.largest.saturating_sub(load.kv)),
            draft: 0,
            needed,
            memory: slot.device.memory,
        }
    }
}

/// The machines of `--rpc`, each once.
fn order_of_workers(slots: &[Slot<'_>]) -> Vec<NodeId> {
    let mut order: Vec<NodeId> =
        slots.iter().filter(|slot| slot.rpc.is_some()).map(|slot| slot.machine.id).collect();
    order.dedup();
    order
}

fn is_faster(found: &Found, best: &Found) -> bool {
    found.prediction.tokens_per_second > best.prediction.tokens_per_second
}
