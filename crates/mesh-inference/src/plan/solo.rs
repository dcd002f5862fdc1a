//! One machine alone.

use super::machine::{Device, Machine};
use super::needs::{Needs, Unit};
use super::predict::{Step, predict};
use super::split::{Load, Room, with_headroom};
use super::{Alternative, Refusal, Share, Way, Wishes};

/// The machine alone, with what it would take and how fast it would be.
pub(crate) fn solo(needs: &Needs, machine: &Machine, way: Way, wishes: &Wishes) -> Alternative {
    let (shares, steps) = lay_out(needs, machine, wishes);
    let short = shares.iter().find(|share| share.needed > share.memory);
    let refusal = if !machine.has_file {
        Some(Refusal::NoFile)
    } else if !machine.serves {
        Some(Refusal::DoesNotServe)
    } else if machine.build.is_empty() {
        Some(Refusal::NoRuntime)
    } else {
        short.map(|share| Refusal::Memory { needed: share.needed, memory: share.memory })
    };
    let prediction = short.is_none().then(|| predict(needs, &steps));
    Alternative { way, at: machine.name.clone(), shares, prediction, refusal }
}

/// GPUs take as many layers as they hold, from the last on, as llama-server has it; the CPU takes the rest.
fn lay_out(needs: &Needs, machine: &Machine, wishes: &Wishes) -> (Vec<Share>, Vec<Step>) {
    let units: Vec<&Unit> = needs.units().collect();
    let mut rest = units.len();
    let (mut shares, mut steps) = (Vec::new(), Vec::new());
    let gpus = if machine.gpus.is_empty() { Vec::new() } else { machine.devices() };
    for device in gpus.iter().rev() {
        let room = Room {
            memory: device.memory,
            fixed: needs.compute,
            is_remote: false,
            headroom_percent: wishes.headroom_percent,
        };
        let taken = taken_from_the_end(&units[..rest], &room);
        let load = Load::of(units[rest - taken..rest].iter().copied());
        if taken > 0 {
            let layers = taken - usize::from(rest == units.len());
            shares.push(share(machine, device, layers, &load, &room));
            steps.push(Step { load, speed: device.speed, rpc: None });
        }
        rest -= taken;
    }
    let load = Load::of(units[..rest].iter().copied());
    steps.push(Step { load, speed: machine.speed, rpc: None });
    steps.reverse();
    shares.reverse();
    let has_all = rest == units.len();
    shares.insert(0, on_cpu(needs, machine, (rest - usize::from(has_all), has_all), &load, wishes));
    (shares, steps)
}

fn taken_from_the_end(units: &[&Unit], room: &Room) -> usize {
    let mut load = Load::default();
    let fits = |unit: &&&Unit| {
        load = load.and(unit);
        room.fits(&load)
    };
    units.iter().rev().take_while(fits).count()
}

fn share(machine: &Machine, device: &Device, layers: usize, load: &Load, room: &Room) -> Share {
    Share {
        node: machine.id,
        machine: machine.name.clone(),
        device: device.name.clone(),
        layers: Some(layers),
        weights: load.weights,
        kv: load.kv,
        buffers: room.fixed,
        draft: 0,
        needed: room.needed(load),
        memory: device.memory,
    }
}

/// Layers, embedding, the process, and the draft model.
fn on_cpu(
    needs: &Needs,
    machine: &Machine,
    (layers, has_all): (usize, bool),
    load: &Load,
    wishes: &Wishes,
) -> Share {
    // A matrix that embedding and output share lies there once.
    let weights = if has_all { needs.weights() } else { load.weights.saturating_add(needs.input) };
    let buffers = needs.compute.saturating_add(needs.server);
    let draft = needs.draft.as_ref().map_or(0, |draft| draft.bytes);
    let all = weights.saturating_add(load.kv).saturating_add(buffers).saturating_add(draft);
    Share {
        node: machine.id,
        machine: machine.name.clone(),
        device: "CPU".into(),
        layers: Some(layers),
        weights,
        kv: load.kv,
        buffers,
        draft,
        needed: with_headroom(all, wishes.headroom_percent),
        memory: machine.memory,
    }
}
