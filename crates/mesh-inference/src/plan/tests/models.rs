//! Models as their files describe them.

use crate::gguf::{Attention, Metadata, PerLayer, Tensor, TensorType, Tokenizer};

pub(super) const F32: TensorType = TensorType(0);
pub(super) const Q8_0: TensorType = TensorType(8);
pub(super) const Q4_K: TensorType = TensorType(12);

/// A file that says nothing but its architecture and number of layers.
pub(super) fn bare(architecture: &str, layers: u64) -> Metadata {
    Metadata {
        version: 3,
        architecture: architecture.into(),
        name: None,
        context_length: Some(131_072),
        block_count: Some(layers),
        embedding_length: None,
        feed_forward_length: None,
        head_count: None,
        head_count_kv: None,
        key_length: None,
        value_length: None,
        expert_count: None,
        expert_used_count: None,
        expert_feed_forward_length: None,
        attention: Attention::default(),
        file_type: None,
        tokenizer: None,
        tensors: Vec::new(),
        files: Vec::new(),
        file_bytes: 0,
        weight_bytes: 0,
    }
}

pub(super) fn tensor(name: &str, kind: TensorType, dimensions: &[u64]) -> Tensor {
    let (block, bytes) = kind.block().unwrap();
    let elements: u64 = dimensions.iter().product();
    Tensor {
        name: name.into(),
        dimensions: dimensions.to_vec(),
        kind,
        offset: 0,
        bytes: elements / block * bytes,
        file: 0,
    }
}

pub(super) fn tokenizer(vocabulary: u64) -> Tokenizer {
    Tokenizer {
        model: "gpt2".into(),
        vocabulary,
        hash: [1; 32],
        words_hash: [2; 32],
        begin: Some(1),
        end: Some(2),
        chat_template: true,
    }
}

/// The shape of a dense model.
pub(super) struct Dense {
    pub(super) architecture: &'static str,
    pub(super) layers: u64,
    pub(super) width: u64,
    pub(super) inner: u64,
    pub(super) heads: (u64, u64),
    pub(super) head: u64,
    pub(super) vocabulary: u64,
    pub(super) is_tied: bool,
}

impl Dense {
    pub(super) fn facts(&self, kind: TensorType) -> Metadata {
        let mut facts = bare(self.architecture, self.layers);
        facts.embedding_length = Some(self.width);
        facts.feed_forward_length = Some(self.inner);
        (facts.head_count, facts.head_count_kv) = (Some(self.heads.0), Some(self.heads.1));
        (facts.key_length, facts.value_length) = (Some(self.head), Some(self.head));
        facts.attention.heads = PerLayer::All(self.heads.0);
        facts.attention.heads_kv = PerLayer::All(self.heads.1);
        facts.tokenizer = Some(tokenizer(self.vocabulary));
        facts.tensors.push(tensor("token_embd.weight", kind, &[self.width, self.vocabulary]));
        for layer in 0..self.layers {
            let name = |part: &str| format!("blk.{layer}.{part}.weight");
            let (queries, keys) = (self.heads.0 * self.head, self.heads.1 * self.head);
            facts.tensors.push(tensor(&name("attn_norm"), F32, &[self.width]));
            facts.tensors.push(tensor(&name("attn_q"), kind, &[self.width, queries]));
            facts.tensors.push(tensor(&name("attn_k"), kind, &[self.width, keys]));
            facts.tensors.push(tensor(&name("attn_v"), kind, &[self.width, keys]));
            facts.tensors.push(tensor(&name("attn_output"), kind, &[queries, self.width]));
            facts.tensors.push(tensor(&name("ffn_norm"), F32, &[self.width]));
            facts.tensors.push(tensor(&name("ffn_gate"), kind, &[self.width, self.inner]));
            facts.tensors.push(tensor(&name("ffn_up"), kind, &[self.width, self.inner]));
            facts.tensors.push(tensor(&name("ffn_down"), kind, &[self.inner, self.width]));
        }
        facts.tensors.push(tensor("output_norm.weight", F32, &[self.width]));
        if !self.is_tied {
            facts.tensors.push(tensor("output.weight", kind, &[self.width, self.vocabulary]));
        }
        facts
    }
}

pub(super) const LLAMA_3_8B: Dense = Dense {
    architecture: "llama",
    layers: 32,
    width: 4096,
    inner: 14_336,
    heads: (32, 8),
    head: 128,
    vocabulary: 128_256,
    is_tied: false,
};

pub(super) const GEMMA_3_12B: Dense = Dense {
    architecture: "gemma3",
    layers: 48,
    width: 3840,
    inner: 15_360,
    heads: (16, 8),
    head: 256,
    vocabulary: 262_208,
    is_tied: true,
};

/// The model of the quickstart, of which measured figures are known.
pub(super) const GEMMA_3_270M: Dense = Dense {
    architecture: "gemma3",
    layers: 18,
    width: 640,
    inner: 2048,
    heads: (4, 1),
    head: 256,
    vocabulary: 262_144,
    is_tied: true,
};

pub(super) fn gemma(shape: &Dense, window: u64) -> Metadata {
    let mut facts = shape.facts(Q8_0);
    facts.attention.window = Some(window);
    facts
}

/// 128 experts of which a token goes through 8.
pub(super) fn qwen3_30b_a3b() -> Metadata {
    let (width, layers, experts, expert) = (2048, 48, 128, 768);
    let mut facts = Dense {
        architecture: "qwen3moe",
        layers,
        width,
        inner: 6144,
        heads: (32, 4),
        head: 128,
        vocabulary: 151_936,
        is_tied: false,
    }
    .facts(Q8_0);
    facts.expert_count = Some(experts);
    facts.expert_used_count = Some(8);
    facts.expert_feed_forward_length = Some(expert);
    facts.tensors.retain(|tensor| !tensor.name.contains("ffn_") || tensor.name.contains("norm"));
    for layer in 0..layers {
        let name = |part: &str| format!("blk.{layer}.ffn_{part}.weight");
        facts.tensors.push(tensor(&name("gate_inp"), F32, &[width, experts]));
        facts.tensors.push(tensor(&name("gate_exps"), Q4_K, &[width, expert, experts]));
        facts.tensors.push(tensor(&name("up_exps"), Q4_K, &[width, expert, experts]));
        facts.tensors.push(tensor(&name("down_exps"), Q4_K, &[expert, width, experts]));
    }
    facts
}

/// Keys and values as one vector of 512 + 64 for all heads.
pub(super) fn deepseek_v2_lite() -> Metadata {
    let mut facts = bare("deepseek2", 27);
    facts.embedding_length = Some(2048);
    facts.feed_forward_length = Some(10_944);
    (facts.head_count, facts.head_count_kv) = (Some(16), Some(1));
    (facts.key_length, facts.value_length) = (Some(576), Some(512));
    facts.attention.heads = PerLayer::All(16);
    facts.attention.heads_kv = PerLayer::All(1);
    facts.attention.is_latent = true;
    facts.tokenizer = Some(tokenizer(102_400));
    for layer in 0..27 {
        facts.tensors.push(tensor(&format!("blk.{layer}.attn_output.weight"), Q8_0, &[2048, 2048]));
    }
    facts.tensors.push(tensor("token_embd.weight", Q8_0, &[2048, 102_400]));
    facts.tensors.push(tensor("output.weight", Q8_0, &[2048, 102_400]));
    facts
}
