//! What the layers of a model remember of earlier tokens, as its file says it.

use super::part::Part;

/// A number that a file gives once for all layers, or for each of them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum PerLayer {
    /// The file does not say.
    #[default]
    Unsaid,
    /// The same in all layers.
    All(u64),
    /// One a layer, from the first.
    Each(Vec<u64>),
}

impl PerLayer {
    /// The number of a layer; `None` when the file does not say.
    pub fn of(&self, layer: usize) -> Option<u64> {
        match self {
            Self::Unsaid => None,
            Self::All(number) => Some(*number),
            Self::Each(numbers) => numbers.get(layer).copied(),
        }
    }
}

/// Keys and values of earlier tokens, and the states of layers without them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Attention {
    /// Attention heads of a layer.
    pub heads: PerLayer,
    /// Key and value heads of a layer; [`Attention::heads`] when the file does not say.
    pub heads_kv: PerLayer,
    /// Elements of a key in layers with a sliding window, where they differ.
    pub key_length_window: Option<u64>,
    /// Elements of a value there.
    pub value_length_window: Option<u64>,
    /// Whether keys and values are kept as one compressed vector (multi-head latent attention).
    pub is_latent: bool,
    /// Tokens that a layer with a sliding window sees.
    pub window: Option<u64>,
    /// Which layers have one: every layer but each n-th (one number), or 1 for each that has (a list).
    pub window_pattern: PerLayer,
    /// Last layers that use the keys and values of earlier ones.
    pub shared_kv_layers: Option<u64>,
    /// Each n-th layer has attention, the others a state.
    pub full_attention_interval: Option<u64>,
    /// 1 for each layer that has a state.
    pub recurrent_layers: PerLayer,
    /// The size of such a state.
    pub state: State,
}

/// The state of a layer that keeps no keys and values (Mamba, RWKV, short convolutions, delta nets).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct State {
    /// `ssm.conv_kernel`.
    pub convolution: Option<u64>,
    /// `ssm.inner_size`.
    pub inner: Option<u64>,
    /// `ssm.state_size`.
    pub size: Option<u64>,
    /// `ssm.group_count`.
    pub groups: Option<u64>,
    /// `shortconv.l_cache`.
    pub short_convolution: Option<u64>,
    /// `wkv.head_size`.
    pub wkv_head: Option<u64>,
    /// `token_shift_count`.
    pub token_shifts: Option<u64>,
    /// `kda.head_dim`.
    pub delta_head: Option<u64>,
}

impl Attention {
    pub(crate) fn of(part: &Part, architecture: &str) -> Self {
        let number = |key: &str| part.number(&format!("{architecture}.{key}"));
        let per_layer = |key: &str| part.per_layer(&format!("{architecture}.{key}"));
        let is_set = |key: &str| number(key).is_some_and(|value| value > 0);
        Self {
            heads: per_layer("attention.head_count"),
            heads_kv: per_layer("attention.head_count_kv"),
            key_length_window: number("attention.key_length_swa"),
            value_length_window: number("attention.value_length_swa"),
            is_latent: is_set("attention.key_length_mla") && is_set("attention.value_length_mla"),
            window: number("attention.sliding_window"),
            window_pattern: per_layer("attention.sliding_window_pattern"),
            shared_kv_layers: number("attention.shared_kv_layers"),
            full_attention_interval: number("full_attention_interval"),
            recurrent_layers: per_layer("attention.recurrent_layers"),
            state: State {
                convolution: number("ssm.conv_kernel"),
                inner: number("ssm.inner_size"),
                size: number("ssm.state_size"),
                groups: number("ssm.group_count"),
                short_convolution: number("shortconv.l_cache"),
                wkv_head: number("wkv.head_size"),
                token_shifts: number("token_shift_count"),
                delta_head: number("kda.head_dim"),
            },
        }
    }
}
