//! What a layer remembers of the context: keys and values, or a state.

use crate::gguf::{Attention, Metadata, PerLayer, State};

use super::needs::Context;

/// llama.cpp rounds a context up to this many tokens.
const CELLS_STEP: u64 = 256;
/// States are kept as 32-bit numbers.
const STATE_ELEMENT_BYTES: u64 = 4;
/// Without a kernel's size in the file, from `llama_hparams::n_embd_r`.
const DELTA_CONVOLUTION: u64 = 4;

/// Which layers of an architecture see a window only, from `src/models/*.cpp` of llama.cpp b11434.
struct Windows {
    architecture: &'static str,
    /// All but each n-th layer, unless the file has a pattern of its own.
    pattern: u64,
    /// Whether each n-th layer without a window is the first of its group, else the last.
    dense_first: bool,
    /// The window, where the code does not read it from the file.
    window: Option<u64>,
}

const WINDOWS: &[Windows] = &[
    Windows { architecture: "afmoe", pattern: 4, dense_first: false, window: None },
    Windows { architecture: "cohere2", pattern: 4, dense_first: false, window: None },
    Windows { architecture: "cohere2moe", pattern: 4, dense_first: true, window: None },
    Windows { architecture: "exaone-moe", pattern: 4, dense_first: false, window: None },
    Windows { architecture: "gemma2", pattern: 2, dense_first: false, window: None },
    Windows { architecture: "gemma3", pattern: 6, dense_first: false, window: None },
    Windows { architecture: "gemma3n", pattern: 5, dense_first: false, window: None },
    Windows { architecture: "gpt-oss", pattern: 2, dense_first: false, window: None },
    Windows { architecture: "laguna", pattern: 4, dense_first: true, window: None },
    Windows { architecture: "llama4", pattern: 4, dense_first: false, window: Some(8192) },
    Windows { architecture: "mellum", pattern: 4, dense_first: false, window: None },
    Windows { architecture: "muse-glimmer", pattern: 4, dense_first: false, window: None },
    Windows { architecture: "olmo2", pattern: 4, dense_first: false, window: None },
    Windows { architecture: "plamo3", pattern: 8, dense_first: false, window: None },
    Windows { architecture: "smallthinker", pattern: 4, dense_first: true, window: Some(4096) },
];

/// Layers with keys and values of their own where the code and not the file says so.
const GEMMA3N_KV_LAYERS: u64 = 20;

/// Bytes that layer `layer` of `layers` keeps for a context, and how many of them are copied into each checkpoint of a slot.
pub(crate) fn layer_bytes(facts: &Metadata, context: &Context, layer: u64, layers: u64) -> (u64, u64) {
    let attention = &facts.attention;
    let slots = u64::from(context.slots.get());
    if is_recurrent(facts, layer) {
        let state = state_bytes(facts, layer);
        // Some (Falcon H1) have both.
        let kept = if facts.architecture == "falcon-h1" {
            kv_bytes(facts, context, layer, cells(context))
        } else {
            0
        };
        return (state.saturating_mul(slots).saturating_add(kept.saturating_mul(slots)), state);
    }
    if layer >= kv_layers(facts, attention, layers) {
        return (0, 0);
    }
    match window_of(facts, layer, layers) {
        Some(window) => {
            let seen = window.saturating_add(u64::from(context.batch.get())).min(cells(context));
            let one = kv_bytes(facts, context, layer, round_up(seen, CELLS_STEP));
            (one.saturating_mul(slots), one)
        }
        None => (kv_bytes(facts, context, layer, cells(context)).saturating_mul(slots), 0),
    }
}

/// Cells of the context of one slot.
pub(crate) fn cells(context: &Context) -> u64 {
    round_up(u64::from(context.tokens.get()), CELLS_STEP)
}

/// Cells of the layers with a window, when there are any.
pub(crate) fn window_cells(facts: &Metadata, context: &Context, layers: u64) -> Option<u64> {
    let window = (0..layers).find_map(|layer| window_of(facts, layer, layers))?;
    let seen = window.saturating_add(u64::from(context.batch.get())).min(cells(context));
    Some(round_up(seen, CELLS_STEP))
}

fn round_up(number: u64, step: u64) -> u64 {
    number.checked_next_multiple_of(step).unwrap_or(u64::MAX)
}

/// Keys and values of one slot of a layer.
fn kv_bytes(facts: &Metadata, context: &Context, layer: u64, cells: u64) -> u64 {
    let attention = &facts.attention;
    let heads = heads_kv(facts, layer);
    let is_windowed = window_of(facts, layer, u64::MAX).is_some();
    let key = attention.key_length_window.filter(|_| is_windowed).or(facts.key_length).unwrap_or(0);
    let value = attention.value_length_window.filter(|_| is_windowed).or(facts.value_length).unwrap_or(0);
    let keys = context.kv.key.bytes(key.saturating_mul(heads));
    // A compressed vector serves as both.
    let values = if attention.is_latent { 0 } else { context.kv.value.bytes(value.saturating_mul(heads)) };
    keys.saturating_add(values).saturating_mul(cells)
}

fn heads_kv(facts: &Metadata, layer: u64) -> u64 {
    let at = usize::try_from(layer).unwrap_or(usize::MAX);
    let said = facts.attention.heads_kv.of(at).or_else(|| facts.attention.heads.of(at));
    said.or(facts.head_count_kv).or(facts.head_count).unwrap_or(0)
}

/// Layers from this one on use the keys and values of earlier ones.
fn kv_layers(facts: &Metadata, attention: &Attention, layers: u64) -> u64 {
    if facts.architecture == "gemma3n" {
        return GEMMA3N_KV_LAYERS.min(layers);
    }
    layers.saturating_sub(attention.shared_kv_layers.unwrap_or(0))
}

/// The window of a layer; `None` when it sees all of the context.
fn window_of(facts: &Metadata, layer: u64, layers: u64) -> Option<u64> {
    let attention = &facts.attention;
    let known = WINDOWS.iter().find(|known| known.architecture == facts.architecture);
    // Phi's is switched off in llama.cpp, and Exaone 4 has one in its largest model alone.
    if facts.architecture.starts_with("phi") {
        return None;
    }
    let exaone = facts.architecture == "exaone4" && facts.block_count == Some(64);
    let said = attention.window.filter(|window| *window > 0);
    let window = match (known, said) {
        // Llama 4 has one unless its file says 0.
        (Some(known), None) if known.architecture == "llama4" && attention.window.is_none() => known.window,
        (Some(known), Some(said)) => known.window.or(Some(said)),
        (_, said) => said,
    }?;
    let (pattern, dense_first) = match (&attention.window_pattern, known) {
        (PerLayer::Each(each), _) => {
            let at = usize::try_from(layer).unwrap_or(usize::MAX);
            return each.get(at).is_some_and(|has| *has > 0).then_some(window);
        }
        (PerLayer::All(every), Some(known)) => (*every, known.dense_first),
        (_, Some(known)) => (known.pattern, known.dense_first),
        (_, None) if exaone => (4, false),
        (_, None) => return None,
    };
    let has = match layer.checked_rem(pattern) {
        None => true,
        Some(place) if dense_first => place != 0,
        Some(place) => place + 1 < pattern,
    };
    (has && layer < layers).then_some(window)
}

/// Whether a layer keeps a state instead of keys and values, as `src/models/*.cpp` decide it.
fn is_recurrent(facts: &Metadata, layer: u64) -> bool {
    let attention = &facts.attention;
    let at = usize::try_from(layer).unwrap_or(usize::MAX);
    match facts.architecture.as_str() {
        "mamba" | "mamba2" | "rwkv6" | "rwkv6qwen2" | "rwkv7" | "arwkv7" | "falcon-h1" => true,
        "qwen3next" | "qwen35" | "qwen35moe" | "minimax-01" => {
            if let Some(said) = attention.recurrent_layers.of(at) {
                return said > 0;
            }
            let interval = attention.full_attention_interval.filter(|every| *every > 0).unwrap_or(4);
            !(layer + 1).is_multiple_of(interval)
        }
        // Their files give such layers no heads for keys and values.
        _ => attention.state != State::default() && heads_kv(facts, layer) == 0,
    }
}

/// Bytes of the state of one slot of a layer, after `llama_hparams::n_embd_r` and `n_embd_s`.
fn state_bytes(facts: &Metadata, layer: u64) -> u64 {
    let state = &facts.attention.state;
    let width = facts.embedding_length.unwrap_or(0);
    let at = usize::try_from(layer).unwrap_or(usize::MAX);
    let heads = facts.attention.heads.of(at).filter(|heads| *heads > 0).or(facts.head_count).unwrap_or(0);
    let elements = if let Some(head) = state.wkv_head {
        let shifts = state.token_shifts.unwrap_or(2);
        width.saturating_mul(shifts.saturating_add(head))
    } else if let Some(length) = state.short_convolution {
        width.saturating_mul(length.saturating_sub(1))
    } else if let Some(head) = state.delta_head {
        let inner = heads.saturating_mul(head);
        let convolution = state.convolution.unwrap_or(DELTA_CONVOLUTION).saturating_sub(1);
        inner.saturating_mul(convolution.saturating_mul(3)).saturating_add(inner.saturating_mul(head))
    } else {
        let inner = state.inner.unwrap_or(0);
        let size = state.size.unwrap_or(0);
        let groups = state.groups.unwrap_or(0).saturating_mul(size).saturating_mul(2);
        let convolution = state.convolution.unwrap_or(0).saturating_sub(1);
        convolution.saturating_mul(inner.saturating_add(groups)).saturating_add(size.saturating_mul(inner))
    };
    elements.saturating_mul(STATE_ELEMENT_BYTES)
}
