//! A plan in words and numbers, as `qmt-cli plan` prints it.

use std::fmt;

use super::needs::Needs;
use super::{Alternative, Plan, Share, Split, Way};

/// Bytes for people: `4.92 GB`.
pub(crate) fn size(bytes: u64) -> String {
    let (unit, name) = match bytes {
        0..1_000_000 => return format!("{bytes} B"),
        1_000_000..1_000_000_000 => (1e6, "MB"),
        1_000_000_000..1_000_000_000_000 => (1e9, "GB"),
        _ => (1e12, "TB"),
    };
    format!("{:.2} {name}", bytes as f64 / unit)
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.model)?;
        write!(f, "{}", self.needs)?;
        for (index, alternative) in self.alternatives.iter().enumerate() {
            let mark = if index == 0 && alternative.refusal.is_none() { "->" } else { "  " };
            writeln!(f)?;
            write!(f, "{mark} {alternative}")?;
        }
        if self.chosen().is_none() {
            writeln!(
                f,
                "\nNothing of this can be done: join machines with more memory, or ask for less context."
            )?;
        }
        for left_out in &self.left_out {
            writeln!(
                f,
                "not in a split: {} ({}): {}",
                left_out.machine,
                left_out.node.short(),
                left_out.why
            )?;
        }
        Ok(())
    }
}

impl fmt::Display for Needs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let context = &self.context;
        let layers = self.layers.len();
        writeln!(f, "  weights  {:>10}  {layers} layers", size(self.weights()))?;
        let tied = if self.is_tied { ", twice in a split" } else { "" };
        let (input, output) = (size(self.input), size(self.output.weights));
        writeln!(f, "           {:>10}  of which embedding {input}{tied}; output {output}", "")?;
        let types = format!("keys {}, values {}", context.kv.key.name(), context.kv.value.name());
        let (slots, tokens) = (context.slots, context.tokens);
        writeln!(f, "  context  {:>10}  {slots} x {tokens} tokens, {types}", size(self.kv()))?;
        let split = size(self.split_compute);
        writeln!(
            f,
            "  compute  {:>10}  on one device; {split} on each device of a split",
            size(self.compute)
        )?;
        writeln!(f, "  server   {:>10}  process, vocabulary, checkpoints, kept prompts", size(self.server))?;
        if let Some(draft) = &self.draft {
            writeln!(f, "  draft    {:>10}", size(draft.bytes))?;
        }
        Ok(())
    }
}

impl fmt::Display for Alternative {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.way {
            Way::Solo => write!(f, "alone on {}", self.at)?,
            Way::Remote { node } => write!(f, "on {} ({}), asked from here", self.at, node.short())?,
            Way::Split(split) => write!(f, "split over {}, hosted by {}", devices(split), self.at)?,
            Way::NoSplit => write!(f, "split, hosted by {}", self.at)?,
        }
        if let Some(prediction) = &self.prediction {
            write!(f, ": {:.1} tokens/s", prediction.tokens_per_second)?;
            if prediction.network_seconds > 0.0 {
                let (work, wait) = (prediction.reading_seconds * 1e3, prediction.network_seconds * 1e3);
                write!(f, " ({work:.1} ms of work and {wait:.1} ms between machines for each)")?;
            }
            write!(f, ", prompt {:.0} tokens/s", prediction.prompt_tokens_per_second)?;
        }
        match &self.refusal {
            Some(refusal) => writeln!(f, "\n     no: {refusal}")?,
            None => writeln!(f)?,
        }
        for share in &self.shares {
            writeln!(f, "     {share}")?;
        }
        if let Way::Split(split) = &self.way {
            let shares: Vec<String> = split.tensor_split.iter().map(f32::to_string).collect();
            writeln!(f, "     --tensor-split {} -ngl {}", shares.join(","), split.gpu_layers)?;
        }
        Ok(())
    }
}

fn devices(split: &Split) -> String {
    match split.devices.iter().filter(|part| part.layers > 0 || part.has_output).count() {
        1 => "1 device".into(),
        count => format!("{count} devices"),
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<24}", format!("{} {}", self.machine, self.device))?;
        match self.layers {
            // A device without a layer is there for the output, or for the embedding.
            Some(0) => write!(f, "{:>13}", "")?,
            Some(layers) => write!(f, "{layers:>4} layers  ")?,
            None => write!(f, "{:>13}", "")?,
        }
        write!(
            f,
            "{} weights + {} context + {} buffers",
            size(self.weights),
            size(self.kv),
            size(self.buffers)
        )?;
        if self.draft > 0 {
            write!(f, " + {} draft", size(self.draft))?;
        }
        write!(f, " -> {} of {}", size(self.needed), size(self.memory))
    }
}
