//! What models need, with the sums written out.

use super::models::*;
use super::*;
use crate::gguf::{PerLayer, State};

#[test]
fn llama_3_8b_layer_by_layer() {
    let needs = Needs::of(&LLAMA_3_8B.facts(Q8_0), &context(8192, 1)).unwrap();
    assert_eq!(needs.layers.len(), 32);
    // Queries and output 4096 x 4096 each, keys and values 4096 x 1024 each, three times 4096 x 14336.
    let elements = 2 * 16_777_216 + 2 * 4_194_304 + 3 * 58_720_256;
    assert_eq!(elements, 218_103_808);
    // Q8_0 stores 32 in 34 bytes; the two norms are f32.
    assert_eq!(needs.layers[7].weights, elements / 32 * 34 + 2 * 4096 * 4);
    assert_eq!(needs.layers[7].read, needs.layers[7].weights);
    assert_eq!(needs.layers[7].largest, 58_720_256 / 32 * 34);
    // 8 heads of 128, keys and values, 2 bytes each: 4 KiB a token, 32 MiB for 8192 of them.
    assert_eq!(needs.layers[0].kv, 32 * MIB);
    assert_eq!(needs.kv(), 1024 * MIB);
    let matrix = 4096 * 128_256 / 32 * 34;
    assert_eq!((needs.input, needs.output.weights), (matrix, matrix + 4096 * 4));
    assert!(!needs.is_tied);
    assert_eq!(needs.weights(), 32 * needs.layers[0].weights + 2 * matrix + 4096 * 4);
    // What is read for a word is all but the embedding, of which one row is.
    assert_eq!(needs.read(), needs.weights() - matrix);
}

#[test]
fn slots_and_types_multiply_the_cache() {
    let facts = LLAMA_3_8B.facts(Q8_0);
    let one = Needs::of(&facts, &context(4096, 1)).unwrap();
    let four = Needs::of(&facts, &context(4096, 4)).unwrap();
    assert_eq!(four.kv(), 4 * one.kv());
    let mut quantized = context(4096, 1);
    quantized.kv = KvTypes { key: KvType::Q8_0, value: KvType::Q4_0 };
    // 1024 elements: 1088 bytes for keys, 576 for values, where f16 takes 2048 each.
    assert_eq!(Needs::of(&facts, &quantized).unwrap().layers[0].kv, 4096 * (1088 + 576));
    // llama.cpp rounds up to 256 tokens.
    assert_eq!(Needs::of(&facts, &context(1, 1)).unwrap().layers[0].kv, 256 * 4096);
}

#[test]
fn a_token_reads_the_experts_that_it_goes_through() {
    let needs = Needs::of(&qwen3_30b_a3b(), &context(4096, 1)).unwrap();
    // Three stacks of 128 experts of 2048 x 768 in Q4_K, 256 elements in 144 bytes.
    let experts = 3 * 128 * 2048 * 768 / 256 * 144;
    let attention = (2 * 2048 * 4096 + 2 * 2048 * 512) / 32 * 34;
    let small = 2 * 2048 * 4 + 2048 * 128 * 4;
    assert_eq!(needs.layers[3].weights, experts + attention + small);
    assert_eq!(needs.layers[3].read, experts / 128 * 8 + attention + small);
    assert!(needs.read() * 7 < needs.weights());
    // 4 heads of 128: 2 KiB a token.
    assert_eq!(needs.layers[0].kv, 4096 * 2048);
}

#[test]
fn gemma_3_sees_a_window_in_five_of_six_layers() {
    let needs = Needs::of(&gemma(&GEMMA_3_12B, 1024), &context(32_768, 1)).unwrap();
    // 8 heads of 256: 8 KiB a token; 32768 tokens, or 1024 of the window and a batch of 512.
    assert_eq!(needs.layers[5].kv, 256 * MIB);
    assert_eq!(needs.layers[4].kv, 12 * MIB);
    assert_eq!(needs.kv(), (8 * 256 + 40 * 12) * MIB);
    // The file carries one matrix for embedding and output.
    assert!(needs.is_tied);
    assert_eq!(needs.output.weights, needs.input + 3840 * 4);
    // A pattern in the file goes before the one of the architecture.
    let mut facts = gemma(&GEMMA_3_12B, 1024);
    facts.attention.window_pattern = PerLayer::Each(vec![0; 48]);
    assert_eq!(Needs::of(&facts, &context(32_768, 1)).unwrap().kv(), 48 * 256 * MIB);
    facts.attention.window_pattern = PerLayer::All(2);
    assert_eq!(Needs::of(&facts, &context(32_768, 1)).unwrap().kv(), 24 * (256 + 12) * MIB);
}

#[test]
fn a_window_that_llama_cpp_ignores_is_ignored() {
    let mut facts = LLAMA_3_8B.facts(Q8_0);
    facts.attention.window = Some(1024);
    assert_eq!(Needs::of(&facts, &context(8192, 1)).unwrap().kv(), 1024 * MIB);
    facts.architecture = "phi3".into();
    facts.attention.window_pattern = PerLayer::Each(vec![1; 32]);
    assert_eq!(Needs::of(&facts, &context(8192, 1)).unwrap().kv(), 1024 * MIB);
}

#[test]
fn latent_attention_keeps_one_vector() {
    let needs = Needs::of(&deepseek_v2_lite(), &context(4096, 2)).unwrap();
    // 512 + 64 elements of 2 bytes, no values, two slots.
    assert_eq!(needs.layers[0].kv, 2 * 4096 * 576 * 2);
    let mut plain = deepseek_v2_lite();
    plain.attention.is_latent = false;
    assert_eq!(Needs::of(&plain, &context(4096, 2)).unwrap().layers[0].kv, 2 * 4096 * (576 + 512) * 2);
}

#[test]
fn heads_may_differ_by_layer_and_layers_without_keep_a_state() {
    let mut facts = LLAMA_3_8B.facts(Q8_0);
    facts.architecture = "jamba".into();
    facts.attention.heads_kv =
        PerLayer::Each((0..32).map(|layer| if layer % 8 == 4 { 8 } else { 0 }).collect());
    facts.attention.state = State {
        convolution: Some(4),
        inner: Some(8192),
        size: Some(16),
        groups: Some(0),
        ..State::default()
    };
    let needs = Needs::of(&facts, &context(8192, 2)).unwrap();
    assert_eq!(needs.layers[4].kv, 2 * 32 * MIB);
    // 3 x 8192 of the convolution and 16 x 8192 of the state, 4 bytes each, for two slots, whatever the context.
    assert_eq!(needs.layers[5].kv, 2 * 4 * (3 * 8192 + 16 * 8192));
}

#[test]
fn linear_layers_of_qwen_3_next_keep_a_state() {
    let mut facts = LLAMA_3_8B.facts(Q8_0);
    facts.architecture = "qwen3next".into();
    facts.attention.state = State {
        convolution: Some(4),
        inner: Some(4096),
        size: Some(128),
        groups: Some(16),
        ..State::default()
    };
    let needs = Needs::of(&facts, &context(8192, 1)).unwrap();
    // Each fourth layer has attention. 3 x (4096 + 2 x 16 x 128) and 128 x 4096 elements of 4 bytes.
    assert_eq!(needs.layers[3].kv, 32 * MIB);
    assert_eq!(needs.layers[2].kv, 4 * (3 * 8192 + 128 * 4096));
    facts.attention.recurrent_layers = PerLayer::Each(vec![0; 32]);
    assert_eq!(Needs::of(&facts, &context(8192, 1)).unwrap().kv(), 1024 * MIB);
}

/// Nearer than `hundredths`.
fn near(found: u64, measured_mib: f64, hundredths: f64) -> bool {
    (found as f64 / MIB as f64 / measured_mib - 1.0).abs() <= hundredths / 100.0
}

/// What llama-server b11434 logged for this model: cache, and compute buffers on one device and on the first of a split.
#[test]
fn gemma_3_270m_as_llama_server_reports_it() {
    let facts = gemma(&GEMMA_3_270M, 512);
    let needs = |tokens, slots, batch| {
        let mut context = context(tokens, slots);
        context.batch = NonZeroU32::new(batch).unwrap();
        Needs::of(&facts, &context).unwrap()
    };
    assert_eq!(needs(4096, 1, 512).kv(), (12 + 15) * MIB);
    assert_eq!(needs(32_768, 1, 512).kv(), (96 + 15) * MIB);
    assert_eq!(needs(4096, 4, 512).kv(), (48 + 60) * MIB);
    assert_eq!(needs(4096, 1, 128).kv(), 12 * MIB + 15 * 768 * 1024);
    // 10 layers on the first device, 8 on the second.
    let layers = needs(4096, 1, 512).layers;
    assert_eq!(layers[..10].iter().map(|layer| layer.kv).sum::<u64>(), (4 + 9) * MIB);
    assert_eq!(layers[10..].iter().map(|layer| layer.kv).sum::<u64>(), (8 + 6) * MIB);
    for (tokens, batch, solo, first, host) in [
        (4096, 512, 23.28, 52.84, 32.61),
        (32_768, 512, 51.28, 164.84, 144.61),
        (4096, 128, 5.76, 12.96, 7.90),
    ] {
        let needs = needs(tokens, 1, batch);
        assert!(near(needs.compute, solo, 1.0), "{} for {solo}", needs.compute);
        assert!(near(needs.split_compute, first, 2.0), "{} for {first}", needs.split_compute);
        assert!(near(needs.split_host_compute, host, 20.0), "{} for {host}", needs.split_host_compute);
    }
}

#[test]
fn a_draft_model_must_speak_the_same_words() {
    let facts = LLAMA_3_8B.facts(Q8_0);
    let needs = Needs::of(&facts, &context(4096, 1)).unwrap();
    let mut draft = LLAMA_3_8B.facts(Q4_K);
    draft.block_count = Some(4);
    let with = needs.clone().with_draft(&facts, &draft).unwrap();
    assert!(with.draft.unwrap().bytes > needs.layers[0].kv * 4);
    let tokenizer = draft.tokenizer.clone().unwrap();
    let error = |change: &dyn Fn(&mut crate::gguf::Tokenizer)| {
        let mut other = tokenizer.clone();
        change(&mut other);
        check_vocabulary(facts.tokenizer.as_ref(), Some(&other)).unwrap_err()
    };
    assert!(matches!(error(&|other| other.model = "llama".into()), DraftError::Kind { .. }));
    let differ = |other: &mut crate::gguf::Tokenizer| (other.hash, other.words_hash) = ([3; 32], [4; 32]);
    assert!(matches!(error(&differ), DraftError::Words { .. }));
    assert_eq!(error(&|other| other.end = Some(9)), DraftError::Ends);
    // Rounded up to another number: the same words all the same, up to the 128 that llama.cpp takes.
    let mut rounded = tokenizer.clone();
    (rounded.hash, rounded.vocabulary) = ([3; 32], tokenizer.vocabulary + 128);
    assert_eq!(check_vocabulary(facts.tokenizer.as_ref(), Some(&rounded)), Ok(()));
    rounded.vocabulary += 1;
    assert!(check_vocabulary(facts.tokenizer.as_ref(), Some(&rounded)).is_err());
    assert_eq!(check_vocabulary(None, Some(&tokenizer)), Err(DraftError::NoVocabulary("the model")));
}
