//! Tensors and the ggml types they are stored in.

use std::fmt;

/// A tensor of the model, as the file's table describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tensor {
    /// Its name, for example `blk.0.attn_q.weight`.
    pub name: String,
    /// Its dimensions, innermost first; at most 4.
    pub dimensions: Vec<u64>,
    /// How its elements are stored.
    pub kind: TensorType,
    /// Where it begins, in bytes from the start of its file.
    pub offset: u64,
    /// Its size in bytes. For a type unknown here: the room up to the next tensor or the end of the file.
    pub bytes: u64,
    /// Which file of a split model holds it, as an index of `Metadata::files`.
    pub file: usize,
}

impl Tensor {
    /// The layer it belongs to: 7 for `blk.7.ffn_up.weight`; `None` for embeddings, output and the like.
    pub fn layer(&self) -> Option<u32> {
        self.name.strip_prefix("blk.")?.split('.').next()?.parse().ok()
    }
}

/// A storage type, by its number in ggml.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TensorType(pub u32);

/// (number, name, elements a block, bytes a block), from ggml.h and ggml-common.h of llama.cpp b11434.
const TYPES: &[(u32, &str, u64, u64)] = &[
    (0, "F32", 1, 4),
    (1, "F16", 1, 2),
    (2, "Q4_0", 32, 18),
    (3, "Q4_1", 32, 20),
    (6, "Q5_0", 32, 22),
    (7, "Q5_1", 32, 24),
    (8, "Q8_0", 32, 34),
    (9, "Q8_1", 32, 36),
    (10, "Q2_K", 256, 84),
    (11, "Q3_K", 256, 110),
    (12, "Q4_K", 256, 144),
    (13, "Q5_K", 256, 176),
    (14, "Q6_K", 256, 210),
    (15, "Q8_K", 256, 292),
    (16, "IQ2_XXS", 256, 66),
    (17, "IQ2_XS", 256, 74),
    (18, "IQ3_XXS", 256, 98),
    (19, "IQ1_S", 256, 50),
    (20, "IQ4_NL", 32, 18),
    (21, "IQ3_S", 256, 110),
    (22, "IQ2_S", 256, 82),
    (23, "IQ4_XS", 256, 136),
    (24, "I8", 1, 1),
    (25, "I16", 1, 2),
    (26, "I32", 1, 4),
    (27, "I64", 1, 8),
    (28, "F64", 1, 8),
    (29, "IQ1_M", 256, 56),
    (30, "BF16", 1, 2),
    (34, "TQ1_0", 256, 54),
    (35, "TQ2_0", 256, 66),
    (39, "MXFP4", 32, 17),
];

impl TensorType {
    /// 32-bit floating point.
    pub const F32: Self = Self(0);

    /// Elements and bytes of one block; `None` for a type unknown here.
    pub fn block(self) -> Option<(u64, u64)> {
        TYPES.iter().find(|row| row.0 == self.0).map(|row| (row.2, row.3))
    }

    /// Name in ggml; `None` for a type unknown here.
    pub fn name(self) -> Option<&'static str> {
        TYPES.iter().find(|row| row.0 == self.0).map(|row| row.1)
    }
}

impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "type {}", self.0),
        }
    }
}

/// Name of a `general.file_type`, from `llama_ftype` of llama.cpp.
pub(crate) fn file_type_name(file_type: u32) -> Option<&'static str> {
    Some(match file_type {
        0 => "F32",
        1 => "F16",
        2 => "Q4_0",
        3 => "Q4_1",
        7 => "Q8_0",
        8 => "Q5_0",
        9 => "Q5_1",
        10 => "Q2_K",
        11 => "Q3_K_S",
        12 => "Q3_K_M",
        13 => "Q3_K_L",
        14 => "Q4_K_S",
        15 => "Q4_K_M",
        16 => "Q5_K_S",
        17 => "Q5_K_M",
        18 => "Q6_K",
        19 => "IQ2_XXS",
        20 => "IQ2_XS",
        21 => "Q2_K_S",
        22 => "IQ3_XS",
        23 => "IQ3_XXS",
        24 => "IQ1_S",
        25 => "IQ4_NL",
        26 => "IQ3_S",
        27 => "IQ3_M",
        28 => "IQ2_S",
        29 => "IQ2_M",
        30 => "IQ4_XS",
        31 => "IQ1_M",
        32 => "BF16",
        36 => "TQ1_0",
        37 => "TQ2_0",
        38 => "MXFP4",
        _ => return None,
    })
}
