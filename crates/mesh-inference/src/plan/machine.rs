//! A machine that may run a model, or a part of it.

use std::time::Duration;

use mesh_identity::NodeId;
use serde::Serialize;

/// A node as placement sees it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Machine {
    /// The node.
    pub id: NodeId,
    /// Its name, for people.
    pub name: String,
    /// What models may take of its system memory, in bytes: within the owner's cap, less what other models hold.
    pub memory: u64,
    /// Its GPUs in llama.cpp's order; without one it computes on its CPU.
    pub gpus: Vec<Gpu>,
    /// How fast its CPU is.
    pub speed: Speed,
    /// How far it is from the node that makes the plan; nothing for that node itself.
    pub link: Link,
    /// Its build of llama.cpp, for example `11434`: the two ends of a split must have the same. Empty: it has none.
    pub build: String,
    /// Whether it has the model's file: only such a node can host, and to a worker that has it no weights are sent.
    pub has_file: bool,
    /// Whether its owner lets it run the model.
    pub serves: bool,
    /// Whether its owner lends memory to others' models.
    pub lends: bool,
}

/// A graphics processor, or what llama.cpp takes for one.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Gpu {
    /// llama.cpp's name for it, for example `CUDA0`.
    pub name: String,
    /// What models may take of its memory, in bytes.
    pub memory: u64,
    /// How fast it is.
    pub speed: Speed,
}

/// How fast a device is. Generating is bound by the memory, working through a prompt by arithmetic.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Speed {
    /// Weights read each second while it generates.
    pub bytes_per_second: f64,
    /// Operations each second while it reads a prompt; two for each weight and token.
    pub flops: f64,
}

impl Speed {
    /// Of a machine of which nothing is known: a desktop with two channels of memory.
    pub const UNKNOWN: Self = Self { bytes_per_second: 2e10, flops: 2e11 };

    /// Whether a prediction can be made from it.
    pub(crate) fn or_unknown(self) -> Self {
        let sound = |number: f64, else_: f64| if number.is_finite() && number > 0.0 { number } else { else_ };
        Self {
            bytes_per_second: sound(self.bytes_per_second, Self::UNKNOWN.bytes_per_second),
            flops: sound(self.flops, Self::UNKNOWN.flops),
        }
    }
}

/// The way to a machine.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Link {
    /// Round trip, as measured; zero for the machine itself.
    pub round_trip: Duration,
    /// What it carries each second.
    pub bytes_per_second: f64,
}

impl Link {
    /// The machine itself.
    pub const HERE: Self = Self { round_trip: Duration::ZERO, bytes_per_second: 4e9 };

    /// A link of 1 Gbit/s with this round trip.
    pub fn new(round_trip: Duration) -> Self {
        Self { round_trip, bytes_per_second: 1.25e8 }
    }

    /// Time for one exchange of so many bytes.
    pub(crate) fn seconds(&self, bytes: u64) -> f64 {
        let rate = self.bytes_per_second;
        let rate = if rate.is_finite() && rate > 0.0 { rate } else { 1.25e8 };
        self.round_trip.as_secs_f64() + bytes as f64 / rate
    }
}

/// A device as llama-server counts them in `--tensor-split`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Device {
    pub(crate) name: String,
    pub(crate) memory: u64,
    pub(crate) speed: Speed,
}

impl Machine {
    /// With the speed of `host` where its own was never measured and both compute on processors: nearer than any figure for all
    /// machines, which would make every split look fast to a slow host.
    pub(crate) fn as_fast_as_known(&self, host: &Self) -> Self {
        let is_unknown = self.speed == Speed::UNKNOWN && self.gpus.is_empty() && host.gpus.is_empty();
        Self { speed: if is_unknown { host.speed } else { self.speed }, ..self.clone() }
    }

    /// What an rpc-server there offers: its GPUs, or else its CPU.
    pub(crate) fn devices(&self) -> Vec<Device> {
        if self.gpus.is_empty() {
            return vec![Device { name: "CPU".into(), memory: self.memory, speed: self.speed }];
        }
        let device = |gpu: &Gpu| Device { name: gpu.name.clone(), memory: gpu.memory, speed: gpu.speed };
        self.gpus.iter().map(device).collect()
    }

    /// What its devices hold together: by this hosts are elected, and workers chosen.
    pub fn device_memory(&self) -> u64 {
        if self.gpus.is_empty() {
            return self.memory;
        }
        self.gpus.iter().map(|gpu| gpu.memory).fold(0, u64::saturating_add)
    }
}
