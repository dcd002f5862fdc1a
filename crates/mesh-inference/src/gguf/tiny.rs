//! A tiny model for tests: random weights, llama architecture, one token a byte.
//!
//! It loads in a real `llama-server` within milliseconds and generates lower-case letters and spaces, the same ones for
//! the same seed at temperature 0. It never ends an answer by itself, so `max_tokens` says how long an answer is.

use std::io;
use std::path::Path;

/// What the model looks like. The default has some 1.4 MB.
#[derive(Debug, Clone)]
pub struct TinyModel {
    /// `general.name`.
    pub name: String,
    /// Fixes the weights.
    pub seed: u64,
    /// Layers.
    pub layers: u32,
    /// Width of the embedding: a multiple of 32.
    pub embedding: u32,
    /// Width of the feed-forward part: a multiple of 32.
    pub feed_forward: u32,
    /// Tokens that it says it was made for.
    pub context: u32,
    /// More words that tell its vocabulary from another one's.
    pub extra_tokens: u32,
    /// It says the alphabet over and over, without spaces: each letter follows from the one before it alone, so that a text that
    /// lost, doubled or swapped something shows it, however it was computed.
    pub alphabet: bool,
}

impl Default for TinyModel {
    fn default() -> Self {
        Self {
            name: "tiny".into(),
            seed: 1,
            layers: 6,
            embedding: 64,
            feed_forward: 192,
            context: 2048,
            extra_tokens: 0,
            alphabet: false,
        }
    }
}

const HEADS: u32 = 4;
const ALIGNMENT: usize = 32;
const TEMPLATE: &str = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}\
                        {% if add_generation_prompt %}assistant: {% endif %}";

impl TinyModel {
    /// Writes the model to one file.
    ///
    /// # Errors
    /// Those of writing the file.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        std::fs::write(path, self.to_bytes())
    }

    /// The model's file.
    pub fn to_bytes(&self) -> Vec<u8> {
        let tensors = self.tensors();
        let mut file = header(tensors.len(), 21);
        self.keys(&mut file);
        let mut offset = 0;
        for tensor in &tensors {
            tensor.describe(&mut file, offset);
            offset += tensor.values.len() * 4;
            offset = offset.next_multiple_of(ALIGNMENT);
        }
        for tensor in &tensors {
            tensor.append(&mut file);
        }
        file
    }

    /// The model in `count` files, in order: keys in the first, layers spread over all. `count` is 1..=99.
    pub fn to_split_bytes(&self, count: u16) -> Vec<Vec<u8>> {
        let tensors = self.tensors();
        let per_file = tensors.len().div_ceil(usize::from(count.max(1)));
        let mut chunks = tensors.chunks(per_file);
        (0..count)
            .map(|number| {
                let tensors_here = chunks.next().unwrap_or_default();
                let mut file = header(tensors_here.len(), if number == 0 { 24 } else { 3 });
                if number == 0 {
                    self.keys(&mut file);
                }
                key(&mut file, "split.no", 2, &number.to_le_bytes());
                key(&mut file, "split.count", 2, &count.to_le_bytes());
                let total = u32::try_from(tensors.len()).unwrap_or(u32::MAX);
                key(&mut file, "split.tensors.count", 5, &total.to_le_bytes());
                let mut offset = 0;
                for tensor in tensors_here {
                    tensor.describe(&mut file, offset);
                    offset += (tensor.values.len() * 4).next_multiple_of(ALIGNMENT);
                }
                tensors_here.iter().for_each(|tensor| tensor.append(&mut file));
                file.resize(file.len().next_multiple_of(ALIGNMENT), 0);
                file
            })
            .collect()
    }

    fn keys(&self, file: &mut Vec<u8>) {
        let number = |file: &mut Vec<u8>, name: &str, value: u32| key(file, name, 4, &value.to_le_bytes());
        let float = |file: &mut Vec<u8>, name: &str, value: f32| key(file, name, 6, &value.to_le_bytes());
        text_key(file, "general.architecture", "llama");
        text_key(file, "general.name", &self.name);
        number(file, "general.file_type", 0);
        number(file, "llama.context_length", self.context);
        number(file, "llama.embedding_length", self.embedding);
        number(file, "llama.block_count", self.layers);
        number(file, "llama.feed_forward_length", self.feed_forward);
        number(file, "llama.attention.head_count", HEADS);
        number(file, "llama.attention.head_count_kv", HEADS);
        number(file, "llama.rope.dimension_count", self.embedding / HEADS);
        float(file, "llama.attention.layer_norm_rms_epsilon", 1e-5);
        number(file, "llama.vocab_size", self.vocabulary());
        text_key(file, "tokenizer.ggml.model", "llama");
        let tokens = self.tokens();
        array_key(file, "tokenizer.ggml.tokens", 8, tokens.len());
        tokens.iter().for_each(|(token, _)| text(file, token));
        array_key(file, "tokenizer.ggml.scores", 6, tokens.len());
        tokens.iter().for_each(|_| file.extend(0f32.to_le_bytes()));
        array_key(file, "tokenizer.ggml.token_type", 5, tokens.len());
        tokens.iter().for_each(|(_, kind)| file.extend(kind.to_le_bytes()));
        number(file, "tokenizer.ggml.bos_token_id", 1);
        number(file, "tokenizer.ggml.eos_token_id", 2);
        number(file, "tokenizer.ggml.unknown_token_id", 0);
        key(file, "tokenizer.ggml.add_space_prefix", 7, &[0]);
        text_key(file, "tokenizer.chat_template", TEMPLATE);
    }

    fn vocabulary(&self) -> u32 {
        3 + 256 + self.extra_tokens
    }

    /// Tokens and their types in ggml: unknown 2, control 3, unused 5, byte 6.
    fn tokens(&self) -> Vec<(String, i32)> {
        let special = [("<unk>".to_owned(), 2), ("<s>".to_owned(), 3), ("</s>".to_owned(), 3)];
        let bytes = (0..=255u8).map(|byte| (format!("<0x{byte:02X}>"), 6));
        let extra = (0..self.extra_tokens).map(|number| (format!("<extra{number}>"), 5));
        special.into_iter().chain(bytes).chain(extra).collect()
    }

    /// The first element of the embedding is the same for every token and no layer changes it, so the output can prefer
    /// letters by it, whatever the rest says.
    fn tensors(&self) -> Vec<NamedTensor> {
        let (width, inner, vocabulary) =
            (self.embedding as usize, self.feed_forward as usize, self.vocabulary() as usize);
        let mut random = Random(self.seed);
        let mut tensors = Vec::new();
        let mut embedding = random.matrix("token_embd.weight", width, vocabulary, 1.0);
        embedding.values.iter_mut().step_by(width).for_each(|value| *value = 2.0);
        tensors.push(embedding);
        for layer in 0..self.layers {
            let name = |part: &str| format!("blk.{layer}.{part}.weight");
            tensors.push(ones(&name("attn_norm"), width));
            for part in ["attn_q", "attn_k", "attn_v"] {
                tensors.push(random.matrix(&name(part), width, width, 0.3));
            }
            tensors.push(random.matrix(&name("attn_output"), width, width, 0.1).without_first_row());
            tensors.push(ones(&name("ffn_norm"), width));
            tensors.push(random.matrix(&name("ffn_gate"), width, inner, 0.3));
            tensors.push(random.matrix(&name("ffn_up"), width, inner, 0.3));
            tensors.push(random.matrix(&name("ffn_down"), inner, width, 0.1).without_first_row());
        }
        tensors.push(ones("output_norm.weight", width));
        let mut output = random.matrix("output.weight", width, vocabulary, 0.3);
        for (token, row) in output.values.chunks_mut(width).enumerate() {
            let spoken = token.checked_sub(3).and_then(|byte| u8::try_from(byte).ok());
            let spoken = spoken.is_some_and(|byte| byte == b' ' || byte.is_ascii_lowercase());
            row[0] = if spoken { 50.0 } else { -50.0 };
        }
        if self.alphabet {
            say_the_alphabet(&mut tensors, &mut output);
        }
        tensors.push(output);
        tensors
    }
}

/// The letters that it says, each behind the one before it, the first behind the last.
const ALPHABET: &[u8; 26] = b"abcdefghijklmnopqrstuvwxyz";

/// No layer adds anything, and the row of a letter in the output is what the letter before it is embedded as.
fn say_the_alphabet(tensors: &mut [NamedTensor], output: &mut NamedTensor) {
    for tensor in tensors.iter_mut() {
        if tensor.name.contains("attn_output") || tensor.name.contains("ffn_down") {
            tensor.values.fill(0.0);
        }
    }
    let width = output.dimensions[0];
    let row = |letter: u8| (3 + usize::from(letter)) * width + 1..(4 + usize::from(letter)) * width;
    for (at, letter) in ALPHABET.iter().enumerate() {
        let before = ALPHABET[(at + ALPHABET.len() - 1) % ALPHABET.len()];
        output.values[row(*letter)].copy_from_slice(&tensors[0].values[row(before)]);
    }
}

struct NamedTensor {
    name: String,
    dimensions: Vec<usize>,
    values: Vec<f32>,
}

impl NamedTensor {
    fn without_first_row(mut self) -> Self {
        let row = self.dimensions[0];
        self.values[..row].fill(0.0);
        self
    }

    fn describe(&self, file: &mut Vec<u8>, offset: usize) {
        text(file, &self.name);
        file.extend(u32::try_from(self.dimensions.len()).unwrap_or(u32::MAX).to_le_bytes());
        self.dimensions.iter().for_each(|dimension| file.extend((*dimension as u64).to_le_bytes()));
        file.extend(0u32.to_le_bytes());
        file.extend((offset as u64).to_le_bytes());
    }

    fn append(&self, file: &mut Vec<u8>) {
        file.resize(file.len().next_multiple_of(ALIGNMENT), 0);
        self.values.iter().for_each(|value| file.extend(value.to_le_bytes()));
    }
}

fn ones(name: &str, width: usize) -> NamedTensor {
    NamedTensor { name: name.to_owned(), dimensions: vec![width], values: vec![1.0; width] }
}

/// SplitMix64: small, seeded, the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// Evenly spread between `-scale` and `scale`.
    fn matrix(&mut self, name: &str, columns: usize, rows: usize, scale: f32) -> NamedTensor {
        let mut value = || {
            let steps = u16::try_from(self.next() >> 48).unwrap_or(0);
            (f32::from(steps) / 32_768.0 - 1.0) * scale
        };
        let values = (0..columns * rows).map(|_| value()).collect();
        NamedTensor { name: name.to_owned(), dimensions: vec![columns, rows], values }
    }
}

fn header(tensors: usize, keys: u64) -> Vec<u8> {
    let mut file = b"GGUF".to_vec();
    file.extend(3u32.to_le_bytes());
    file.extend((tensors as u64).to_le_bytes());
    file.extend(keys.to_le_bytes());
    file
}

fn text(file: &mut Vec<u8>, text: &str) {
    file.extend((text.len() as u64).to_le_bytes());
    file.extend(text.as_bytes());
}

fn key(file: &mut Vec<u8>, name: &str, kind: u32, value: &[u8]) {
    text(file, name);
    file.extend(kind.to_le_bytes());
    file.extend(value);
}

fn text_key(file: &mut Vec<u8>, name: &str, value: &str) {
    key(file, name, 8, &[]);
    text(file, value);
}

fn array_key(file: &mut Vec<u8>, name: &str, kind: u32, count: usize) {
    key(file, name, 9, &kind.to_le_bytes());
    file.extend((count as u64).to_le_bytes());
}
