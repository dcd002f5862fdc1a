//! Files and facts that lie.

use proptest::prelude::*;

use super::models::*;
use super::*;
use crate::gguf::{Metadata, PerLayer, State, Tensor, TensorType};

#[test]
fn a_file_without_layers_is_refused() {
    let error = Needs::of(&bare("llama", 0), &context(4096, 1)).unwrap_err();
    assert_eq!(error, NeedsError::NoLayers);
    let mut facts = bare("llama", 1);
    facts.block_count = None;
    assert_eq!(Needs::of(&facts, &context(4096, 1)), Err(NeedsError::NoLayers));
    assert_eq!(Needs::of(&bare("llama", 513), &context(4096, 1)), Err(NeedsError::TooManyLayers(513)));
    assert_eq!(Needs::of(&bare("llama", u64::MAX), &context(1, 1)), Err(NeedsError::TooManyLayers(u64::MAX)));
}

/// Everything at its largest: it needs more than there is, and that is all.
#[test]
fn absurd_numbers_need_more_than_there_is() {
    for architecture in ["llama", "gemma3", "mamba", "deepseek2", "qwen3next", "falcon-h1", "rwkv7", "lfm2"] {
        let needs = Needs::of(&absurd(architecture, u64::MAX), &context(u32::MAX, u32::MAX)).unwrap();
        let plan = plan("m", &needs, &host(64 * GB), &[machine(1, u64::MAX / 2)], &Wishes::default());
        assert!(plan.chosen().is_none(), "{architecture}: {plan}");
    }
}

fn absurd(architecture: &str, number: u64) -> Metadata {
    let mut facts = bare(architecture, 4);
    let all = Some(number);
    (facts.embedding_length, facts.feed_forward_length) = (all, all);
    (facts.head_count, facts.head_count_kv, facts.key_length, facts.value_length) = (all, all, all, all);
    (facts.expert_count, facts.expert_used_count, facts.expert_feed_forward_length) = (all, all, all);
    facts.attention.window = all;
    facts.attention.window_pattern = PerLayer::All(number);
    facts.attention.full_attention_interval = all;
    facts.attention.state =
        State { convolution: all, inner: all, size: all, groups: all, ..State::default() };
    facts.tokenizer = Some(tokenizer(number));
    facts.tensors.push(Tensor {
        name: "blk.0.ffn_up_exps.weight".into(),
        dimensions: vec![number; 4],
        kind: TensorType(8),
        offset: number,
        bytes: number,
        file: 0,
    });
    facts
}

prop_compose! {
    fn number()(edge in 0usize..8, any in any::<u64>()) -> u64 {
        [0, 1, 2, 255, 1 << 31, u64::MAX / 2, u64::MAX, any][edge]
    }
}

prop_compose! {
    fn liar()(
        numbers in proptest::collection::vec(number(), 22),
        layers in 0u64..600,
        architecture in 0usize..12,
        each in proptest::collection::vec(number(), 0..40),
        names in proptest::collection::vec((0usize..6, number(), number()), 0..20),
        is_latent in any::<bool>(),
    ) -> Metadata {
        let architecture = ["llama", "gemma3", "gemma3n", "gemma4", "llama4", "mamba", "jamba", "lfm2", "qwen3next",
            "deepseek2", "phi3", "kimi-linear"][architecture];
        let mut facts = bare(architecture, layers);
        let said = |index: usize| Some(numbers[index]).filter(|number| number % 5 != 0);
        (facts.embedding_length, facts.feed_forward_length) = (said(0), said(1));
        (facts.head_count, facts.head_count_kv) = (said(2), said(3));
        (facts.key_length, facts.value_length) = (said(4), said(5));
        (facts.expert_count, facts.expert_used_count) = (said(6), said(7));
        facts.expert_feed_forward_length = said(8);
        let attention = &mut facts.attention;
        (attention.heads, attention.heads_kv) = (PerLayer::Each(each.clone()), PerLayer::All(numbers[9]));
        (attention.key_length_window, attention.value_length_window) = (said(10), said(11));
        attention.is_latent = is_latent;
        attention.window = said(12);
        attention.window_pattern = if is_latent { PerLayer::Each(each) } else { PerLayer::All(numbers[13]) };
        (attention.shared_kv_layers, attention.full_attention_interval) = (said(14), said(15));
        attention.state = State { convolution: said(16), inner: said(17), size: said(18), groups: said(19),
            short_convolution: said(20), wkv_head: None, token_shifts: said(21), delta_head: said(0) };
        facts.tokenizer = Some(tokenizer(numbers[1]));
        facts.tensors = names.into_iter().map(|(name, dimension, bytes)| Tensor {
            name: ["token_embd.weight", "output.weight", "blk.0.a_exps.weight", "blk.599.a", "blk.4294967295.b", "x"][name].into(),
            dimensions: vec![dimension; 4],
            kind: TensorType(12),
            offset: 0,
            bytes,
            file: 0,
        }).collect();
        facts
    }
}

proptest! {
    #[test]
    fn no_file_makes_a_plan_panic(
        facts in liar(), tokens in 1u32.., slots in 1u32.., memory in number(), rate in any::<f64>(), percent in number()
    ) {
        let Ok(needs) = Needs::of(&facts, &context(tokens, slots)) else { return Ok(()) };
        let _ = needs.clone().with_draft(&facts, &facts);
        let mut odd = lender(1, memory);
        odd.speed = Speed { bytes_per_second: rate, flops: -rate };
        odd.link.bytes_per_second = rate;
        let wishes = Wishes { split: true, headroom_percent: percent, ..Wishes::default() };
        let plan = plan("m", &needs, &host(u64::MAX), &[odd, machine(2, memory)], &wishes);
        for alternative in plan.alternatives.iter().filter(|way| way.refusal.is_none()) {
            prop_assert!(alternative.shares.iter().all(|share| share.needed <= share.memory));
        }
        let _ = plan.to_string();
        let _ = serde_json::to_string(&plan);
    }
}
