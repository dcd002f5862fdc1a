//! What a node says of its machine to members that look for memory, and of the models on its disk.

use std::sync::Arc;

use mesh_inference::catalogue::Model;
use mesh_inference::llama::Device;
use mesh_inference::plan::Speed;
use serde::{Deserialize, Serialize};

use super::Node;
use super::offers::{MemoryFacts, decode_list, encode_list};

/// The key of [`MachineFacts`].
pub(crate) const MACHINE_KEY: &str = "machine";
/// Values used for the models on disk at most; about 300 models.
const DISK_VALUES_MAX: usize = 6;

/// What models could have of a machine. Readers ignore fields they do not know.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct MachineFacts {
    /// llama.cpp's own words for its build; empty where there is none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) build: String,
    /// Whether members may borrow memory.
    #[serde(default)]
    pub(crate) lends: bool,
    /// Its owner named no model: it takes up what is needed.
    #[serde(default)]
    pub(crate) auto: bool,
    /// What models may take of the system's memory, those that run included.
    #[serde(default)]
    pub(crate) memory: u64,
    /// What they hold of it, by model.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) holds: Vec<(String, u64)>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) gpus: Vec<GpuFacts>,
    /// Of the processor; none before it was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) speed: Option<SpeedFacts>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct GpuFacts {
    pub(crate) name: String,
    pub(crate) memory: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) speed: Option<SpeedFacts>,
}

/// As a short run of llama-bench found it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct SpeedFacts {
    pub(crate) bytes_per_second: f64,
    pub(crate) flops: f64,
}

/// A model on a node's disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DiskFacts {
    pub(crate) model: String,
    pub(crate) bytes: u64,
}

impl MachineFacts {
    /// What a model could have of the system's memory: all but what others hold.
    pub(crate) fn memory_for(&self, model: &str) -> u64 {
        let others = self.holds.iter().filter(|(holder, _)| holder != model);
        others.fold(self.memory, |left, (_, bytes)| left.saturating_sub(*bytes))
    }
}

impl Node {
    /// This node's own machine as others were told of it last, so that all decide by the same facts.
    pub(crate) fn told_machine(&self) -> MachineFacts {
        match self.inner.told_machine.load_full() {
            Some(told) => (*told).clone(),
            None => self.machine_facts(self.own_facts().memory.as_ref()),
        }
    }

    /// Takes what is known now for told; the record follows.
    pub(crate) fn retell_machine(&self) {
        let facts = self.machine_facts(self.own_facts().memory.as_ref());
        self.inner.told_machine.store(Some(Arc::new(facts)));
        self.refresh();
    }

    /// This node's own machine. `memory` is what its models are counted in; none where the platform does not tell.
    pub(crate) fn machine_facts(&self, memory: Option<&MemoryFacts>) -> MachineFacts {
        let lending = &self.inner.lending;
        let runtime = lending.known();
        let holds = lending.ledger().list();
        let held = holds.iter().fold(0u64, |sum, (_, bytes)| sum.saturating_add(*bytes));
        let memory = memory.map_or(0, |memory| {
            memory.free.saturating_add(held).min(memory.cap.unwrap_or(memory.total)).min(memory.total)
        });
        let config = &self.config().inference;
        let devices = runtime.map(|runtime| runtime.devices.as_slice()).unwrap_or_default();
        MachineFacts {
            build: runtime.map(|runtime| runtime.llama.version.text.clone()).unwrap_or_default(),
            lends: config.lend
                && !self.config().client
                && runtime.is_some_and(|runtime| runtime.llama.rpc_server.is_some()),
            auto: config.assign && config.models.is_empty() && !self.config().client && runtime.is_some(),
            memory,
            holds,
            gpus: gpus(devices, config.max_vram_bytes, self.measured_speed().map(told_speed)),
            speed: self.measured_speed().filter(|_| devices.is_empty()).map(told_speed),
        }
    }
}

fn told_speed(speed: Speed) -> SpeedFacts {
    SpeedFacts { bytes_per_second: speed.bytes_per_second, flops: speed.flops }
}

/// The owner's bound is for all of them together: each gives its part.
fn gpus(devices: &[Device], cap: Option<u64>, speed: Option<SpeedFacts>) -> Vec<GpuFacts> {
    let total = devices.iter().fold(0u64, |sum, device| sum.saturating_add(device.total)).max(1);
    let cap = cap.unwrap_or(total).min(total);
    let part = |device: &Device| u128::from(device.total) * u128::from(cap) / u128::from(total);
    devices
        .iter()
        .map(|device| GpuFacts {
            name: device.name.clone(),
            memory: u64::try_from(part(device)).unwrap_or(device.total),
            // Measured with all of them at once.
            speed,
        })
        .collect()
}

fn disk_keys() -> impl Iterator<Item = String> {
    (0..DISK_VALUES_MAX).map(|at| format!("disk/{at}"))
}

/// The values to publish, every key included. Models that are not whole are left out.
pub(crate) fn encode_disk(models: &[Model]) -> Vec<(String, Vec<u8>)> {
    let whole = models.iter().filter(|model| model.missing.is_empty());
    let facts: Vec<DiskFacts> =
        whole.map(|model| DiskFacts { model: model.name.clone(), bytes: model.file_bytes }).collect();
    encode_list(disk_keys(), &facts)
}

/// The models on a member's disk.
pub(crate) fn decode_disk<'a>(value: impl Fn(&str) -> Option<&'a [u8]>) -> Vec<DiskFacts> {
    decode_list(disk_keys(), value)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn a_model_counts_what_others_hold() {
        let facts = MachineFacts {
            memory: 100,
            holds: vec![("a".into(), 30), ("b".into(), 50), ("a".into(), 5)],
            ..MachineFacts::default()
        };
        assert_eq!((facts.memory_for("a"), facts.memory_for("b"), facts.memory_for("c")), (50, 65, 15));
        let full = MachineFacts { memory: 1, ..facts };
        assert_eq!(full.memory_for("c"), 0);
    }

    #[test]
    fn a_bound_is_shared_out_over_the_devices() {
        let device = |total| Device { name: "CUDA0".into(), description: String::new(), total, free: total };
        let memory =
            |cap| gpus(&[device(30), device(10)], cap, None).iter().map(|gpu| gpu.memory).collect::<Vec<_>>();
        assert_eq!(memory(None), [30, 10]);
        assert_eq!(memory(Some(20)), [15, 5]);
        assert_eq!(memory(Some(u64::MAX)), [30, 10]);
        assert!(gpus(&[], Some(5), None).is_empty());
    }

    #[test]
    fn facts_of_other_versions_are_read() {
        let facts: MachineFacts = serde_json::from_str(r#"{"memory":7,"tomorrow":[1]}"#).unwrap();
        assert_eq!((facts.memory, facts.lends), (7, false));
        assert!(serde_json::from_str::<MachineFacts>("7").is_err());
    }

    #[test]
    fn the_models_on_disk_go_round() {
        let model = |number: usize| Model {
            name: format!("model-{number}"),
            path: "/m".into(),
            file_bytes: 5,
            missing: if number == 3 { vec!["/m2".into()] } else { Vec::new() },
        };
        let models: Vec<Model> = (0..200).map(model).collect();
        let values: BTreeMap<String, Vec<u8>> = encode_disk(&models).into_iter().collect();
        let read = decode_disk(|key| values.get(key).map(Vec::as_slice));
        assert_eq!(read.len(), 199);
        assert!(!read.iter().any(|facts| facts.model == "model-3"));
    }
}
