//! The command lines of `llama-server` and `ggml-rpc-server`, in the words of build b11434.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::PathBuf;

use crate::plan::KvTypes;

/// How a model is run.
#[derive(Debug, Clone)]
pub struct Arguments {
    /// The model's file; the first one of a split model.
    pub model: PathBuf,
    /// Tokens of context for each slot.
    pub context_tokens: NonZeroU32,
    /// Requests worked on at a time. Each has a context of its own.
    pub slots: NonZeroU32,
    /// Layers on a GPU; `None` leaves it to llama-server. A split sets its own.
    pub gpu_layers: Option<u32>,
    /// Threads; `None` leaves it to llama-server (one a core).
    pub threads: Option<NonZeroU32>,
    /// How keys and values are stored.
    pub kv: KvTypes,
    /// What may be kept of earlier prompts in memory, in MiB; `None` leaves it to llama-server (8192).
    pub prompt_cache_mib: Option<u32>,
    /// Other devices that take part; `None` for a model on this machine alone.
    pub split: Option<SplitArguments>,
    /// A small model that drafts for this one.
    pub draft: Option<DraftArguments>,
    /// Further arguments, passed on as they are.
    pub extra: Vec<OsString>,
}

/// A split as llama-server is told of it. Made from a [`Split`](crate::plan::Split) and the local ports of its workers' services.
#[derive(Debug, Clone, PartialEq)]
pub struct SplitArguments {
    /// Where the workers' rpc-servers are reached here, in the order of the split's workers.
    pub rpc: Vec<SocketAddr>,
    /// Shares of the devices: those of the workers, then the GPUs of this machine.
    pub tensor_split: Vec<f32>,
    /// Layers on all of them, with the output.
    pub gpu_layers: u32,
}

/// A draft model as llama-server is told of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DraftArguments {
    /// Its file.
    pub model: PathBuf,
    /// Tokens drafted at a time; `None` leaves it to llama-server (3).
    pub tokens_max: Option<NonZeroU32>,
}

impl Arguments {
    /// One slot with up to 4096 tokens, everything else as llama-server likes it.
    pub fn new(model: PathBuf) -> Self {
        let context_tokens = NonZeroU32::new(4096).unwrap_or(NonZeroU32::MIN);
        Self {
            model,
            context_tokens,
            slots: NonZeroU32::MIN,
            gpu_layers: None,
            threads: None,
            kv: KvTypes::default(),
            prompt_cache_mib: None,
            split: None,
            draft: None,
            extra: Vec::new(),
        }
    }

    /// The whole command line for a port. The server binds loopback only: other nodes come through the gateway. It calls the
    /// model `name` in its answers, which would else show the file's path to whoever asks.
    pub(crate) fn to_list(&self, name: &str, port: u16) -> Vec<OsString> {
        let total = self.context_tokens.get().saturating_mul(self.slots.get());
        let mut list: Vec<OsString> = vec!["-m".into(), self.model.clone().into()];
        let mut pair = |name: &str, value: OsString| list.extend([name.into(), value]);
        pair("--alias", name.into());
        pair("--host", "127.0.0.1".into());
        pair("--port", port.to_string().into());
        pair("-c", total.to_string().into());
        pair("-np", self.slots.to_string().into());
        if let Some(layers) = self.split.as_ref().map(|split| split.gpu_layers).or(self.gpu_layers) {
            pair("-ngl", layers.to_string().into());
        }
        if let Some(threads) = self.threads {
            pair("-t", threads.to_string().into());
        }
        if self.kv != KvTypes::default() {
            pair("-ctk", self.kv.key.name().into());
            pair("-ctv", self.kv.value.name().into());
        }
        if let Some(mib) = self.prompt_cache_mib {
            pair("--cache-ram", mib.to_string().into());
        }
        if let Some(split) = &self.split {
            if !split.rpc.is_empty() {
                pair("--rpc", joined(&split.rpc).into());
            }
            pair("--tensor-split", joined(&split.tensor_split).into());
            // It would change what was planned, and open each connection several times to find out.
            pair("-fit", "off".into());
        }
        if let Some(draft) = &self.draft {
            pair("-md", draft.model.clone().into());
            pair("--spec-type", "draft-simple".into());
            if let Some(tokens) = draft.tokens_max {
                pair("--spec-draft-n-max", tokens.to_string().into());
            }
            // Else it would be split over the others' devices as well.
            if self.split.is_some() {
                pair("--spec-draft-device", "none".into());
            }
        }
        list.push("--no-webui".into());
        list.extend(self.extra.iter().cloned());
        list
    }
}

/// How memory is lent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RpcArguments {
    /// The port, on 127.0.0.1.
    pub port: u16,
    /// Threads of a CPU device; `None` leaves it to the program, which takes one.
    pub threads: Option<NonZeroU32>,
    /// Which devices it offers, by llama.cpp's names; empty for all GPUs, or the CPU where there is none.
    pub devices: Vec<String>,
}

impl RpcArguments {
    /// The command line. The program knows no bound on memory: the lease is the bound.
    pub fn to_list(&self) -> Vec<OsString> {
        let mut list: Vec<OsString> = vec!["-H".into(), "127.0.0.1".into()];
        list.extend(["-p".into(), self.port.to_string().into()]);
        if let Some(threads) = self.threads {
            list.extend(["-t".into(), threads.to_string().into()]);
        }
        if !self.devices.is_empty() {
            list.extend(["-d".into(), self.devices.join(",").into()]);
        }
        list
    }
}

fn joined(items: &[impl ToString]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::plan::KvType;

    fn text(list: &[OsString]) -> String {
        list.iter().map(|item| item.to_str().unwrap()).collect::<Vec<_>>().join("|")
    }

    #[test]
    fn every_slot_has_the_whole_context() {
        let mut arguments = Arguments::new("/m/a b.gguf".into());
        arguments.slots = NonZeroU32::new(3).unwrap();
        arguments.gpu_layers = Some(99);
        assert_eq!(
            text(&arguments.to_list("m", 4711)),
            "-m|/m/a b.gguf|--alias|m|--host|127.0.0.1|--port|4711|-c|12288|-np|3|-ngl|99|--no-webui"
        );
    }

    #[test]
    fn a_split_is_fixed_and_its_draft_stays_here() {
        let mut arguments = Arguments::new("/m/a.gguf".into());
        arguments.gpu_layers = Some(7);
        arguments.kv = KvTypes { key: KvType::Q8_0, value: KvType::F16 };
        arguments.prompt_cache_mib = Some(0);
        arguments.split = Some(SplitArguments {
            rpc: vec![([127, 0, 0, 1], 5001).into(), ([127, 0, 0, 1], 5002).into()],
            tensor_split: vec![10.0, 9.0, 0.5],
            gpu_layers: 19,
        });
        arguments.draft = Some(DraftArguments { model: "/m/d.gguf".into(), tokens_max: NonZeroU32::new(8) });
        assert_eq!(
            text(&arguments.to_list("m", 1)),
            "-m|/m/a.gguf|--alias|m|--host|127.0.0.1|--port|1|-c|4096|-np|1|-ngl|19|-ctk|q8_0|-ctv|f16|--cache-ram|0|\
             --rpc|127.0.0.1:5001,127.0.0.1:5002|--tensor-split|10,9,0.5|-fit|off|-md|/m/d.gguf|--spec-type|draft-simple|\
             --spec-draft-n-max|8|--spec-draft-device|none|--no-webui"
        );
    }

    #[test]
    fn memory_is_lent_on_loopback_only() {
        let mut arguments = RpcArguments { port: 5001, threads: None, devices: Vec::new() };
        assert_eq!(text(&arguments.to_list()), "-H|127.0.0.1|-p|5001");
        arguments.threads = NonZeroU32::new(2);
        arguments.devices = vec!["CUDA0".into(), "CUDA1".into()];
        assert_eq!(text(&arguments.to_list()), "-H|127.0.0.1|-p|5001|-t|2|-d|CUDA0,CUDA1");
    }
}
