//! Facts of a GGUF file, versions 2 and 3, read without loading it.
//!
//! Everything read from the file is bounded: counts, text lengths, nesting and the total size of its tables, so that no
//! file can make a node panic or allocate beyond what it has really read. Weights are never read.

mod cursor;
mod error;
mod layers;
mod part;
mod split;
mod tensor;
#[cfg(feature = "testing")]
pub mod tiny;

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

pub use error::{Fault, GgufError};
pub use layers::{Attention, PerLayer, State};
pub(crate) use split::SplitName;
pub use tensor::{Tensor, TensorType};

use part::Part;

/// What a model's files say of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Metadata {
    /// GGUF version of the first file.
    pub version: u32,
    /// `general.architecture`, for example `llama` or `gemma3`.
    pub architecture: String,
    /// `general.name`.
    pub name: Option<String>,
    /// Tokens that the model was made for.
    pub context_length: Option<u64>,
    /// Layers.
    pub block_count: Option<u64>,
    /// Width of the embedding.
    pub embedding_length: Option<u64>,
    /// Width of the feed-forward part (the widest layer).
    pub feed_forward_length: Option<u64>,
    /// Attention heads (of the widest layer).
    pub head_count: Option<u64>,
    /// Key and value heads (of the widest layer); `head_count` when the file does not say.
    pub head_count_kv: Option<u64>,
    /// Elements of a key per head; `embedding_length / head_count` when the file does not say.
    pub key_length: Option<u64>,
    /// Elements of a value per head; likewise.
    pub value_length: Option<u64>,
    /// Experts of a mixture.
    pub expert_count: Option<u64>,
    /// Experts that a token goes through (of the layer with most).
    pub expert_used_count: Option<u64>,
    /// Width of an expert's feed-forward part (of the widest layer).
    pub expert_feed_forward_length: Option<u64>,
    /// What its layers remember of earlier tokens.
    pub attention: Attention,
    /// `general.file_type`.
    pub file_type: Option<u32>,
    /// The tokenizer, when the file carries one.
    pub tokenizer: Option<Tokenizer>,
    /// All tensors, in the order of the files.
    pub tensors: Vec<Tensor>,
    /// The files, part by part.
    pub files: Vec<PathBuf>,
    /// Size of all files.
    pub file_bytes: u64,
    /// Size of all tensors.
    pub weight_bytes: u64,
}

/// What a model's file says of its tokenizer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tokenizer {
    /// `tokenizer.ggml.model`, for example `llama` or `gpt2`.
    pub model: String,
    /// Number of tokens.
    pub vocabulary: u64,
    /// BLAKE3 over the tokens in order, each after its length (u64 LE): equal vocabularies have equal hashes.
    pub hash: [u8; 32],
    /// BLAKE3 over the tokens but for fillers (`[PAD151665]`), each after its number and length (u64 LE): two models of one
    /// family that are rounded up differently have equal ones.
    pub words_hash: [u8; 32],
    /// Number of the token that begins a text.
    pub begin: Option<u64>,
    /// Number of the token that ends a text.
    pub end: Option<u64>,
    /// Whether there is a chat template.
    pub chat_template: bool,
}

impl Metadata {
    /// How the weights are stored: by `general.file_type`, or else by what most bytes are stored in.
    pub fn quantization(&self) -> String {
        if let Some(name) = self.file_type.and_then(tensor::file_type_name) {
            return name.to_owned();
        }
        let mut sizes = std::collections::BTreeMap::<TensorType, u128>::new();
        for tensor in &self.tensors {
            *sizes.entry(tensor.kind).or_default() += u128::from(tensor.bytes);
        }
        sizes
            .into_iter()
            .max_by_key(|(_, bytes)| *bytes)
            .map_or_else(|| "unknown".into(), |(kind, _)| kind.to_string())
    }

    /// Parameters of the model.
    pub fn parameters(&self) -> u64 {
        self.tensors
            .iter()
            .map(|tensor| tensor.dimensions.iter().product::<u64>())
            .fold(0, u64::saturating_add)
    }
}

/// Reads the facts of a model. Any part of a split model stands for all of it.
///
/// Blocks on the disk for some milliseconds: call it from a blocking thread.
///
/// # Errors
/// [`GgufError`] names the file, what was read, the position and the fault.
pub fn read_metadata(path: &Path) -> Result<Metadata, GgufError> {
    let Some(split) = SplitName::of(path) else {
        let (part, length) = read_file(path)?;
        return assemble(vec![(path.to_owned(), part, length)]);
    };
    let folder = path.parent().unwrap_or(Path::new(""));
    let mut parts = Vec::new();
    for number in 1..=split.count {
        let file = split.path(folder, number);
        if !file.exists() {
            let fault = Fault::PartMissing { number, count: split.count, path: file };
            return Err(GgufError::new(path, "split model", 0, fault));
        }
        let (part, length) = read_file(&file)?;
        let said = part.number("split.count");
        if said.is_some_and(|said| said != u64::from(split.count)) {
            let fault = Fault::Invalid(format!("{} where the name says {}", said.unwrap_or(0), split.count));
            return Err(GgufError::new(&file, "split.count", 0, fault));
        }
        parts.push((file, part, length));
    }
    assemble(parts)
}

/// Reads the facts of a model in one file from any reader. `length` is the size of the file, `file` its name in errors.
///
/// # Errors
/// As [`read_metadata`].
pub fn parse(reader: impl BufRead, file: &Path, length: u64) -> Result<Metadata, GgufError> {
    assemble(vec![(file.to_owned(), part::read(reader, file, length)?, length)])
}

fn read_file(path: &Path) -> Result<(Part, u64), GgufError> {
    let open = || -> Result<(File, u64), std::io::Error> {
        let file = File::open(path)?;
        let length = file.metadata()?.len();
        Ok((file, length))
    };
    let (file, length) = open().map_err(|error| GgufError::new(path, "opening", 0, error.into()))?;
    Ok((part::read(BufReader::with_capacity(1 << 16, file), path, length)?, length))
}

fn assemble(parts: Vec<(PathBuf, Part, u64)>) -> Result<Metadata, GgufError> {
    let (mut files, mut tensors, mut file_bytes) = (Vec::new(), Vec::new(), 0u64);
    let mut first = None;
    for (index, (file, mut part, length)) in parts.into_iter().enumerate() {
        tensors.extend(part.tensors.drain(..).map(|tensor| Tensor { file: index, ..tensor }));
        file_bytes = file_bytes.saturating_add(length);
        files.push(file);
        first.get_or_insert(part);
    }
    let part = first.unwrap_or_default();
    let file = files.first().map_or(Path::new(""), PathBuf::as_path);
    let missing =
        || GgufError::new(file, "metadata", part.data_offset, Fault::Missing("general.architecture"));
    let architecture = part.text("general.architecture").ok_or_else(missing)?.to_owned();
    let number = |key: &str| part.number(&format!("{architecture}.{key}"));
    let (embedding_length, head_count) = (number("embedding_length"), number("attention.head_count"));
    let per_head = embedding_length.zip(head_count).and_then(|(width, heads)| width.checked_div(heads));
    Ok(Metadata {
        version: part.version,
        name: part.text("general.name").map(str::to_owned),
        context_length: number("context_length"),
        block_count: number("block_count"),
        embedding_length,
        feed_forward_length: number("feed_forward_length"),
        head_count,
        head_count_kv: number("attention.head_count_kv").or(head_count),
        key_length: number("attention.key_length").or(per_head),
        value_length: number("attention.value_length").or(per_head),
        expert_count: number("expert_count"),
        expert_used_count: number("expert_used_count"),
        expert_feed_forward_length: number("expert_feed_forward_length"),
        attention: Attention::of(&part, &architecture),
        file_type: part.number("general.file_type").and_then(|number| u32::try_from(number).ok()),
        tokenizer: part.tokens.map(|tokens| Tokenizer {
            model: part.text("tokenizer.ggml.model").unwrap_or_default().to_owned(),
            vocabulary: tokens.count,
            hash: tokens.hash,
            words_hash: tokens.words,
            begin: part.number("tokenizer.ggml.bos_token_id"),
            end: part.number("tokenizer.ggml.eos_token_id"),
            chat_template: part.values.contains_key("tokenizer.chat_template"),
        }),
        weight_bytes: tensors.iter().map(|tensor: &Tensor| tensor.bytes).fold(0, u64::saturating_add),
        architecture,
        tensors,
        files,
        file_bytes,
    })
}
