//! What a model needs: bytes by layer, and what each token costs.

use std::num::NonZeroU32;

use serde::Serialize;

use super::draft::{DraftError, check_vocabulary};
use super::kv;
use crate::gguf::{Metadata, Tensor, TensorType};

/// `LLAMA_MAX_LAYERS` of llama.cpp.
const LAYERS_MAX: u64 = 512;
/// Context checkpoints of one slot, and the tokens between them: `--ctx-checkpoints` and `--checkpoint-min-step`.
const CHECKPOINTS_MAX: u64 = 32;
const CHECKPOINT_TOKENS: u64 = 8192;
/// Each backend of a split keeps this many copies of its inputs (`GGML_SCHED_MAX_COPIES`).
const SPLIT_COPIES: u64 = 4;
/// Code, threads and buffers of a `llama-server`, and what it keeps of each token of the vocabulary: 64 MB were measured with
/// 262,144 tokens, 20 MB with 259.
const SERVER_BYTES: u64 = 24 << 20;
const VOCABULARY_TOKEN_BYTES: u64 = 160;
/// The same of an rpc-server: 5 MB were measured.
pub(crate) const RPC_SERVER_BYTES: u64 = 8 << 20;

/// How much a model is to remember, and for how many at a time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Context {
    /// Tokens of context for each slot.
    pub tokens: NonZeroU32,
    /// Requests worked on at a time; each has a context of its own.
    pub slots: NonZeroU32,
    /// How keys and values are stored.
    pub kv: KvTypes,
    /// Tokens of a prompt worked on at once (`-ub`).
    pub batch: NonZeroU32,
    /// What the host may keep of earlier prompts in memory (`--cache-ram`).
    pub prompt_cache_bytes: u64,
}

impl Context {
    /// So many tokens for each of so many slots, f16, a batch of 512, nothing kept of earlier prompts.
    pub fn new(tokens: NonZeroU32, slots: NonZeroU32) -> Self {
        let batch = NonZeroU32::new(512).unwrap_or(NonZeroU32::MIN);
        Self { tokens, slots, kv: KvTypes::default(), batch, prompt_cache_bytes: 0 }
    }
}

/// Types of the keys and the values in the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct KvTypes {
    /// `-ctk`.
    pub key: KvType,
    /// `-ctv`.
    pub value: KvType,
}

/// A type that llama-server takes for its cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "the names are ggml's")]
pub enum KvType {
    F32,
    #[default]
    F16,
    Bf16,
    Q8_0,
    Q5_1,
    Q5_0,
    Q4_1,
    Q4_0,
    Iq4Nl,
}

impl KvType {
    /// Its name on llama-server's command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::Q8_0 => "q8_0",
            Self::Q5_1 => "q5_1",
            Self::Q5_0 => "q5_0",
            Self::Q4_1 => "q4_1",
            Self::Q4_0 => "q4_0",
            Self::Iq4Nl => "iq4_nl",
        }
    }

    /// Size of so many elements.
    pub(crate) fn bytes(self, elements: u64) -> u64 {
        let number = match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Bf16 => 30,
            Self::Q8_0 => 8,
            Self::Q5_1 => 7,
            Self::Q5_0 => 6,
            Self::Q4_1 => 3,
            Self::Q4_0 => 2,
            Self::Iq4Nl => 20,
        };
        let (block, bytes) = TensorType(number).block().unwrap_or((1, 4));
        elements.div_ceil(block).saturating_mul(bytes)
    }
}

/// One layer, or what comes after the last one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Unit {
    /// Its weights.
    pub weights: u64,
    /// Its keys and values, or states, for all slots.
    pub kv: u64,
    /// Weights that each token reads: all of them, but of a mixture only the experts that it goes through.
    pub read: u64,
    /// Operations for each token: two for each weight that it reads.
    pub operations: u64,
    /// Its largest tensor: an rpc-server holds it twice while it loads.
    pub largest: u64,
}

/// What a model needs to run, in bytes. Saturating: a file that announces absurd sizes needs more than there is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Needs {
    /// The layers, in order.
    pub layers: Vec<Unit>,
    /// What turns the last layer into words: output matrix and norm. It lies on the last device of a split.
    pub output: Unit,
    /// What is read of it when it shares the embedding's matrix: that matrix lies on the host too, and in a split twice.
    pub is_tied: bool,
    /// The embedding, which stays on the host.
    pub input: u64,
    /// Width of what goes from layer to layer, elements.
    pub width: u64,
    /// Tokens of the vocabulary: so many numbers come back for each word.
    pub vocabulary: u64,
    /// What was asked for.
    pub context: Context,
    /// Compute buffers when it all runs on one device.
    pub compute: u64,
    /// Compute buffers of one device of a split.
    pub split_compute: u64,
    /// Compute buffers of the host of a split, beside those of its devices.
    pub split_host_compute: u64,
    /// Process and vocabulary of llama-server, checkpoints and kept prompts.
    pub server: u64,
    /// The draft model, when there is one.
    pub draft: Option<DraftNeeds>,
}

/// What a draft model needs; it runs on the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DraftNeeds {
    /// Weights, cache and buffers.
    pub bytes: u64,
}

/// Why nothing can be said of a model. Nothing has changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NeedsError {
    /// The file does not say how many layers there are, or says 0.
    #[error("its file names no layers; is it a language model?")]
    NoLayers,
    /// More layers than llama.cpp takes.
    #[error("{0} layers are more than the {LAYERS_MAX} that llama.cpp takes")]
    TooManyLayers(u64),
    /// The draft model speaks another vocabulary.
    #[error("the draft model does not fit")]
    Draft(#[from] DraftError),
}

impl Needs {
    /// What the model of a file needs.
    ///
    /// # Errors
    /// [`NeedsError`]; whatever else a file says is counted, not believed.
    pub fn of(facts: &Metadata, context: &Context) -> Result<Self, NeedsError> {
        let count = match facts.block_count {
            None | Some(0) => return Err(NeedsError::NoLayers),
            Some(count) if count > LAYERS_MAX => return Err(NeedsError::TooManyLayers(count)),
            Some(count) => count,
        };
        let mut layers: Vec<Unit> = Vec::new();
        let mut checkpoint = 0u64;
        for layer in 0..count {
            let (kv, copied) = kv::layer_bytes(facts, context, layer, count);
            checkpoint = checkpoint.saturating_add(copied);
            layers.push(Unit { kv, ..Unit::default() });
        }
        let (mut output, mut input, mut embedding) = (Unit::default(), 0u64, Unit::default());
        let mut has_output = false;
        for tensor in &facts.tensors {
            let place = tensor.layer().and_then(|layer| layers.get_mut(usize::try_from(layer).ok()?));
            match place {
                Some(unit) => add(unit, tensor, facts),
                None if is_input(&tensor.name) => {
                    input = input.saturating_add(tensor.bytes);
                    if tensor.name == "token_embd.weight" {
                        add(&mut embedding, tensor, facts);
                    }
                }
                None => {
                    has_output |= tensor.name == "output.weight";
                    add(&mut output, tensor, facts);
                }
            }
        }
        if !has_output {
            output.weights = output.weights.saturating_add(embedding.weights);
            output.read = output.read.saturating_add(embedding.weights);
            output.operations = output.operations.saturating_add(embedding.operations);
            output.largest = output.largest.max(embedding.largest);
        }
        let vocabulary = facts.tokenizer.as_ref().map_or(0, |tokenizer| tokenizer.vocabulary);
        let buffers = Buffers::of(facts, context, count);
        let checkpoints = (u64::from(context.tokens.get()) / CHECKPOINT_TOKENS).saturating_add(1);
        let checkpoints = checkpoints
            .min(CHECKPOINTS_MAX)
            .saturating_mul(checkpoint)
            .saturating_mul(u64::from(context.slots.get()));
        Ok(Self {
            layers,
            output,
            is_tied: !has_output,
            input,
            width: facts.embedding_length.unwrap_or(0),
            vocabulary,
            context: context.clone(),
            compute: buffers.solo(),
            split_compute: buffers.device(),
            split_host_compute: buffers.host(),
            server: SERVER_BYTES
                .saturating_add(vocabulary.saturating_mul(VOCABULARY_TOKEN_BYTES))
                .saturating_add(checkpoints)
                .saturating_add(context.prompt_cache_bytes),
            draft: None,
        })
    }

    /// The same with a draft model beside it, which runs on the host with a context as long.
    ///
    /// # Errors
    /// [`NeedsError::Draft`] when the two speak different vocabularies.
    pub fn with_draft(self, facts: &Metadata, draft: &Metadata) -> Result<Self, NeedsError> {
        check_vocabulary(facts.tokenizer.as_ref(), draft.tokenizer.as_ref())?;
        let needs = Self::of(draft, &self.context)?;
        // Its process and vocabulary are llama-server's.
        let bytes = needs.weights().saturating_add(needs.kv()).saturating_add(needs.compute);
        Ok(Self { draft: Some(DraftNeeds { bytes }), ..self })
    }

    /// All weights, each once.
    pub fn weights(&self) -> u64 {
        let output = if self.is_tied { 0 } else { self.output.weights };
        sum(self.layers.iter().map(|layer| layer.weights)).saturating_add(self.input).saturating_add(output)
    }

    /// All keys, values and states.
    pub fn kv(&self) -> u64 {
        sum(self.layers.iter().map(|layer| layer.kv)).saturating_add(self.output.kv)
    }

    /// Weights that each token reads.
    pub fn read(&self) -> u64 {
        sum(self.units().map(|unit| unit.read))
    }

    /// Operations for each token.
    pub fn operations(&self) -> u64 {
        sum(self.units().map(|unit| unit.operations))
    }

    /// Layers and output: what a split spreads over devices.
    pub fn units(&self) -> impl Iterator<Item = &Unit> + Clone {
        self.layers.iter().chain(std::iter::once(&self.output))
    }
}

/// Sizes of the buffers that a graph is computed in. The formulas were fitted to what llama-server b11434 reserves for
/// Gemma 3 270M and the tests' model, with batches of 128 to 1024 and contexts of 2048 to 32768; they agree within 1 % (one
/// device) and 20 % (a split, where the first device needs most).
struct Buffers {
    batch: u64,
    width: u64,
    /// The widest intermediate results of a token, elements.
    activations: u64,
    /// Attention masks.
    mask: u64,
    /// Logits of all slots.
    logits: u64,
}

impl Buffers {
    fn of(facts: &Metadata, context: &Context, layers: u64) -> Self {
        let width = facts.embedding_length.unwrap_or(0);
        let batch = u64::from(context.batch.get()).min(kv::cells(context));
        let experts = facts.expert_used_count.unwrap_or(0);
        let expert = facts.expert_feed_forward_length.unwrap_or(0).saturating_add(width);
        let inner = facts.feed_forward_length.unwrap_or(0);
        let inner = inner.max(experts.saturating_mul(expert));
        let key = facts.key_length.unwrap_or(0);
        let heads = facts.head_count.unwrap_or(0).saturating_mul(key);
        let heads_kv = facts.head_count_kv.unwrap_or(0).saturating_mul(key);
        let attention = heads.saturating_mul(3).saturating_add(heads_kv.saturating_mul(4));
        let wide = inner.saturating_mul(3).max(attention);
        let cells = kv::cells(context).saturating_add(kv::window_cells(facts, context, layers).unwrap_or(0));
        let vocabulary = facts.tokenizer.as_ref().map_or(0, |tokenizer| tokenizer.vocabulary);
        Self {
            batch,
            width,
            activations: wide.saturating_add(width.saturating_mul(5)),
            mask: cells.saturating_mul(batch).saturating_mul(2),
            logits: vocabulary.saturating_mul(u64::from(context.slots.get())).saturating_mul(4),
        }
    }

    fn floats(&self, elements: u64) -> u64 {
        elements.saturating_mul(self.batch).saturating_mul(4)
    }

    fn solo(&self) -> u64 {
        self.floats(self.activations).max(self.logits).saturating_add(self.mask)
    }

    fn device(&self) -> u64 {
        let inputs = self.width.saturating_mul(12);
        self.floats(self.activations.saturating_add(inputs))
            .max(self.logits)
            .saturating_add(self.mask.saturating_mul(SPLIT_COPIES))
    }

    fn host(&self) -> u64 {
        self.floats(self.width.saturating_mul(11))
            .saturating_add(self.mask.saturating_mul(SPLIT_COPIES))
            .saturating_add(self.logits)
    }
}

fn add(unit: &mut Unit, tensor: &Tensor, facts: &Metadata) {
    unit.weights = unit.weights.saturating_add(tensor.bytes);
    unit.read = unit.read.saturating_add(used(tensor.bytes, tensor, facts));
    let elements = tensor.dimensions.iter().fold(1u64, |product, next| product.saturating_mul(*next));
    unit.operations = unit.operations.saturating_add(used(elements, tensor, facts).saturating_mul(2));
    unit.largest = unit.largest.max(tensor.bytes);
}

/// Of the stacked experts (`ffn_up_exps` and the like) a token goes through some.
fn used(amount: u64, tensor: &Tensor, facts: &Metadata) -> u64 {
    let experts = facts.expert_count.filter(|_| tensor.name.contains("_exps."));
    let used = facts.expert_used_count.zip(experts).filter(|(used, all)| used < all);
    match used {
        Some((used, all)) => (amount / all).saturating_mul(used),
        None => amount,
    }
}

/// Tensors that llama.cpp keeps on the host's CPU whatever the split.
fn is_input(name: &str) -> bool {
    ["token_embd", "per_layer_token_embd", "position_embd", "token_types"]
        .iter()
        .any(|start| name.starts_with(start))
}

pub(crate) fn sum(numbers: impl Iterator<Item = u64>) -> u64 {
    numbers.fold(0, u64::saturating_add)
}
