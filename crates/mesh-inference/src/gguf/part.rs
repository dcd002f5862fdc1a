//! One GGUF file: header, keys and values, tensor table.

use std::collections::BTreeMap;
use std::io::BufRead;
use std::path::Path;

use super::cursor::{Cursor, STRING_BYTES_MAX};
use super::error::{Fault, GgufError};
use super::layers::PerLayer;
use super::tensor::{Tensor, TensorType};

/// Keys of real models number below 100.
const KEYS_MAX: u64 = 4096;
/// The largest models have some 2,000.
const TENSORS_MAX: u64 = 65_536;
const KEY_BYTES_MAX: u64 = 1024;
/// `GGML_MAX_NAME` is 64.
const TENSOR_NAME_BYTES_MAX: u64 = 256;
/// Texts that are kept; longer ones (templates, licences) are only passed over.
const KEPT_TEXT_BYTES_MAX: u64 = 1024;
/// Number lists that are kept: one entry a layer.
const KEPT_LIST_MAX: u64 = 1024;
/// `[PAD` and the largest number of a token.
const FILLER_BYTES_MAX: u64 = 16;
/// Lists of lists do not occur in models; the format allows them.
const NESTING_MAX: u32 = 2;
const ALIGNMENT_MAX: u64 = 1 << 20;

/// What one file says.
#[derive(Debug, Default)]
pub(crate) struct Part {
    pub(crate) version: u32,
    pub(crate) values: BTreeMap<String, Value>,
    pub(crate) tokens: Option<Tokens>,
    pub(crate) tensors: Vec<Tensor>,
    /// Where the weights begin.
    pub(crate) data_offset: u64,
}

/// The list of tokens, as hashes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tokens {
    pub(crate) count: u64,
    pub(crate) hash: [u8; 32],
    pub(crate) words: [u8; 32],
}

#[derive(Debug, PartialEq)]
pub(crate) enum Value {
    Unsigned(u64),
    Text(String),
    /// A list of numbers, one a layer.
    List(Vec<u64>),
    /// Present, of no further interest.
    Other,
}

impl Part {
    pub(crate) fn number(&self, key: &str) -> Option<u64> {
        match self.values.get(key)? {
            Value::Unsigned(number) => Some(*number),
            Value::List(numbers) => Some(numbers.iter().copied().max().unwrap_or(0)),
            _ => None,
        }
    }

    /// A number for all layers, or one for each; empty when the file does not say.
    pub(crate) fn per_layer(&self, key: &str) -> PerLayer {
        match self.values.get(key) {
            Some(Value::Unsigned(number)) => PerLayer::All(*number),
            Some(Value::List(numbers)) => PerLayer::Each(numbers.clone()),
            _ => PerLayer::Unsaid,
        }
    }

    pub(crate) fn text(&self, key: &str) -> Option<&str> {
        match self.values.get(key)? {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }
}

/// Reads header and tables. `length` is the file's size; tensors beyond it make it [`Fault::CutOff`].
pub(crate) fn read(reader: impl BufRead, file: &Path, length: u64) -> Result<Part, GgufError> {
    let mut reading = Reading { cursor: Cursor::new(reader), what: String::from("header") };
    reading.part(length).map_err(|fault| GgufError::new(file, reading.what, reading.cursor.offset(), fault))
}

struct Reading<R> {
    cursor: Cursor<R>,
    what: String,
}

impl<R: BufRead> Reading<R> {
    fn part(&mut self, length: u64) -> Result<Part, Fault> {
        let mut part = Part { version: self.version()?, ..Part::default() };
        let tensors = bounded(self.cursor.u64()?, TENSORS_MAX)?;
        let keys = bounded(self.cursor.u64()?, KEYS_MAX)?;
        for number in 0..keys {
            self.what = format!("key {number}");
            let key = self.cursor.string(KEY_BYTES_MAX)?;
            self.what = format!("value of {key}");
            let value = self.value(&key, &mut part)?;
            if part.values.insert(key, value).is_some() {
                return Err(Fault::Invalid("the key occurs twice".into()));
            }
        }
        for number in 0..tensors {
            self.what = format!("tensor {number}");
            let tensor = self.tensor()?;
            part.tensors.push(tensor);
        }
        self.what = "general.alignment".into();
        let alignment = part.number("general.alignment").unwrap_or(32);
        if !alignment.is_power_of_two() || alignment > ALIGNMENT_MAX {
            return Err(Fault::Invalid(format!(
                "an alignment of {alignment} is not a power of two up to {ALIGNMENT_MAX}"
            )));
        }
        part.data_offset = self.cursor.offset().next_multiple_of(alignment);
        place(&mut part.tensors, part.data_offset, alignment, length, &mut self.what)?;
        Ok(part)
    }

    fn version(&mut self) -> Result<u32, Fault> {
        let magic = self.cursor.array::<4>()?;
        if &magic != b"GGUF" {
            return Err(Fault::NotGguf(magic));
        }
        match self.cursor.u32()? {
            version @ (2 | 3) => Ok(version),
            version if matches!(version.swap_bytes(), 1..=3) => Err(Fault::BigEndian),
            version => Err(Fault::Version(version)),
        }
    }

    fn value(&mut self, key: &str, part: &mut Part) -> Result<Value, Fault> {
        let kind = self.cursor.u32()?;
        match kind {
            STRING => {
                let length = self.cursor.string_length(STRING_BYTES_MAX)?;
                if length > KEPT_TEXT_BYTES_MAX {
                    self.cursor.skip(length)?;
                    return Ok(Value::Other);
                }
                let mut bytes = Vec::new();
                self.cursor.chunks(length, |chunk| bytes.extend_from_slice(chunk))?;
                Ok(Value::Text(String::from_utf8_lossy(&bytes).into_owned()))
            }
            ARRAY => {
                let (kind, count) = (self.cursor.u32()?, self.cursor.u64()?);
                if key == "tokenizer.ggml.tokens" && kind == STRING {
                    part.tokens = Some(self.hash_tokens(count)?);
                    return Ok(Value::Other);
                }
                if matches!(kind, U32 | I32 | BOOL) && count <= KEPT_LIST_MAX {
                    let mut numbers = Vec::new();
                    for _ in 0..count {
                        numbers.push(self.number(kind)?);
                    }
                    return Ok(Value::List(numbers));
                }
                self.skip_array(kind, count, 1)?;
                Ok(Value::Other)
            }
            F32 | F64 => {
                self.cursor.skip(width(kind)?)?;
                Ok(Value::Other)
            }
            _ => self.number(kind).map(Value::Unsigned),
        }
    }

    /// An integer or a truth value; negative ones (which no key of interest has) count as 0.
    fn number(&mut self, kind: u32) -> Result<u64, Fault> {
        Ok(match kind {
            U8 | BOOL => u64::from(self.cursor.array::<1>()?[0]),
            I8 => u64::try_from(i8::from_le_bytes(self.cursor.array()?)).unwrap_or(0),
            U16 => u64::from(u16::from_le_bytes(self.cursor.array()?)),
            I16 => u64::try_from(i16::from_le_bytes(self.cursor.array()?)).unwrap_or(0),
            U32 => u64::from(self.cursor.u32()?),
            I32 => u64::try_from(i32::from_le_bytes(self.cursor.array()?)).unwrap_or(0),
            U64 => self.cursor.u64()?,
            I64 => u64::try_from(i64::from_le_bytes(self.cursor.array()?)).unwrap_or(0),
            _ => return Err(Fault::UnknownType(kind)),
        })
    }

    fn hash_tokens(&mut self, count: u64) -> Result<Tokens, Fault> {
        let (mut hash, mut words) = (blake3::Hasher::new(), blake3::Hasher::new());
        for index in 0..count {
            let length = self.cursor.string_length(STRING_BYTES_MAX)?;
            hash.update(&length.to_le_bytes());
            // Only what is long enough to be no filler goes by in pieces.
            if length > FILLER_BYTES_MAX {
                words.update(&index.to_le_bytes());
                words.update(&length.to_le_bytes());
                self.cursor.chunks(length, |chunk| {
                    hash.update(chunk);
                    words.update(chunk);
                })?;
                continue;
            }
            let mut token = Vec::new();
            self.cursor.chunks(length, |chunk| token.extend_from_slice(chunk))?;
            hash.update(&token);
            if !is_filler(&token) {
                words.update(&index.to_le_bytes());
                words.update(&length.to_le_bytes());
                words.update(&token);
            }
        }
        Ok(Tokens { count, hash: *hash.finalize().as_bytes(), words: *words.finalize().as_bytes() })
    }

    fn skip_array(&mut self, kind: u32, count: u64, depth: u32) -> Result<(), Fault> {
        match kind {
            STRING => {
                for _ in 0..count {
                    let length = self.cursor.string_length(STRING_BYTES_MAX)?;
                    self.cursor.skip(length)?;
                }
                Ok(())
            }
            ARRAY if depth >= NESTING_MAX => {
                Err(Fault::TooLarge { found: u64::from(depth) + 1, max: NESTING_MAX.into() })
            }
            ARRAY => {
                for _ in 0..count {
                    let (kind, count) = (self.cursor.u32()?, self.cursor.u64()?);
                    self.skip_array(kind, count, depth + 1)?;
                }
                Ok(())
            }
            _ => {
                let bytes = count.checked_mul(width(kind)?);
                self.cursor.skip(bytes.unwrap_or(u64::MAX))
            }
        }
    }

    fn tensor(&mut self) -> Result<Tensor, Fault> {
        let name = self.cursor.string(TENSOR_NAME_BYTES_MAX)?;
        self.what = format!("tensor {name}");
        let count = bounded(u64::from(self.cursor.u32()?), 4)?;
        let mut dimensions = Vec::with_capacity(4);
        for _ in 0..count {
            dimensions.push(self.cursor.u64()?);
        }
        let kind = TensorType(self.cursor.u32()?);
        let offset = self.cursor.u64()?;
        let bytes = size(&dimensions, kind)?;
        Ok(Tensor { name, dimensions, kind, offset, bytes, file: 0 })
    }
}

/// Whether a token is one of the `[PAD151665]` by which converters round a vocabulary up.
fn is_filler(token: &[u8]) -> bool {
    let digits = token.strip_prefix(b"[PAD").and_then(|rest| rest.strip_suffix(b"]"));
    digits.is_some_and(|digits| !digits.is_empty() && digits.iter().all(u8::is_ascii_digit))
}

/// Bytes of a tensor; 0 when its type is unknown.
fn size(dimensions: &[u64], kind: TensorType) -> Result<u64, Fault> {
    let elements = dimensions.iter().try_fold(1u64, |product, next| product.checked_mul(*next));
    let elements =
        elements.ok_or_else(|| Fault::Invalid(format!("the dimensions {dimensions:?} overflow")))?;
    let Some((block, bytes)) = kind.block() else { return Ok(0) };
    if dimensions.first().is_some_and(|first| first % block != 0) {
        return Err(Fault::Invalid(format!(
            "rows of {dimensions:?} are not whole blocks of {block} ({kind})"
        )));
    }
    (elements / block)
        .checked_mul(bytes)
        .ok_or_else(|| Fault::Invalid(format!("the dimensions {dimensions:?} overflow")))
}

/// Turns offsets into positions in the file, and checks that everything lies inside it.
fn place(
    tensors: &mut [Tensor],
    start: u64,
    alignment: u64,
    length: u64,
    what: &mut String,
) -> Result<(), Fault> {
    let mut starts: Vec<u64> = tensors.iter().map(|tensor| tensor.offset).collect();
    starts.sort_unstable();
    for tensor in tensors {
        *what = format!("tensor {}", tensor.name);
        if tensor.offset % alignment != 0 {
            return Err(Fault::Invalid(format!(
                "its offset {} is not a multiple of {alignment}",
                tensor.offset
            )));
        }
        let next = starts.get(starts.partition_point(|start| *start <= tensor.offset));
        let room =
            next.map_or_else(|| length.saturating_sub(start), |next| *next).saturating_sub(tensor.offset);
        if tensor.kind.block().is_none() {
            tensor.bytes = room;
        } else if next.is_some() && tensor.bytes > room {
            return Err(Fault::Invalid("it overlaps the next tensor".into()));
        }
        let end = start.checked_add(tensor.offset).and_then(|start| start.checked_add(tensor.bytes));
        let end = end.ok_or_else(|| Fault::Invalid("its offset overflows".into()))?;
        if end > length {
            return Err(Fault::CutOff { needed: end, found: length });
        }
        tensor.offset += start;
    }
    Ok(())
}

fn bounded(found: u64, max: u64) -> Result<u64, Fault> {
    if found > max { Err(Fault::TooLarge { found, max }) } else { Ok(found) }
}

fn width(kind: u32) -> Result<u64, Fault> {
    Ok(match kind {
        U8 | I8 | BOOL => 1,
        U16 | I16 => 2,
        U32 | I32 | F32 => 4,
        U64 | I64 | F64 => 8,
        _ => return Err(Fault::UnknownType(kind)),
    })
}

const U8: u32 = 0;
const I8: u32 = 1;
const U16: u32 = 2;
const I16: u32 = 3;
const U32: u32 = 4;
const I32: u32 = 5;
const F32: u32 = 6;
const BOOL: u32 = 7;
const STRING: u32 = 8;
const ARRAY: u32 = 9;
const U64: u32 = 10;
const I64: u32 = 11;
const F64: u32 = 12;
