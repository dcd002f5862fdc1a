//! The command line of `llama-server`, in the words of build b11434.

use std::ffi::OsString;
use std::num::NonZeroU32;
use std::path::PathBuf;

/// How a model is run.
#[derive(Debug, Clone)]
pub struct Arguments {
    /// The model's file; the first one of a split model.
    pub model: PathBuf,
    /// Tokens of context for each slot.
    pub context_tokens: NonZeroU32,
    /// Requests worked on at a time. Each has a context of its own.
    pub slots: NonZeroU32,
    /// Layers on a GPU; `None` leaves it to llama-server.
    pub gpu_layers: Option<u32>,
    /// Threads; `None` leaves it to llama-server (one a core).
    pub threads: Option<NonZeroU32>,
    /// Further arguments, passed on as they are.
    pub extra: Vec<OsString>,
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
            extra: Vec::new(),
        }
    }

    /// The whole command line for a port. The server binds loopback only: other nodes come through the gateway. It calls the
    /// model `name` in its answers, which would else show the file's path to whoever asks.
    pub(crate) fn to_list(&self, name: &str, port: u16) -> Vec<OsString> {
        let total = self.context_tokens.get().saturating_mul(self.slots.get());
        let mut list: Vec<OsString> = vec!["-m".into(), self.model.clone().into()];
        let mut pair = |name: &str, value: String| list.extend([name.into(), value.into()]);
        pair("--alias", name.into());
        pair("--host", "127.0.0.1".into());
        pair("--port", port.to_string());
        pair("-c", total.to_string());
        pair("-np", self.slots.to_string());
        if let Some(layers) = self.gpu_layers {
            pair("-ngl", layers.to_string());
        }
        if let Some(threads) = self.threads {
            pair("-t", threads.to_string());
        }
        list.push("--no-webui".into());
        list.extend(self.extra.iter().cloned());
        list
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn every_slot_has_the_whole_context() {
        let mut arguments = Arguments::new("/m/a b.gguf".into());
        arguments.slots = NonZeroU32::new(3).unwrap();
        arguments.gpu_layers = Some(99);
        let list = arguments.to_list("m", 4711);
        let text = list.iter().map(|item| item.to_str().unwrap()).collect::<Vec<_>>().join("|");
        assert_eq!(
            text,
            "-m|/m/a b.gguf|--alias|m|--host|127.0.0.1|--port|4711|-c|12288|-np|3|-ngl|99|--no-webui"
        );
    }
}
