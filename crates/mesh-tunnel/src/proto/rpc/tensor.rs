//! What is read of a tensor in a frame: its name, and where its bytes go.

/// A packed `rpc_tensor`.
pub(crate) const TENSOR_BYTES: usize = 296;
/// `rpc_tensor | cache_flag u8 | offset u64`, in front of the data of a SET_TENSOR.
pub(crate) const SET_TENSOR_HEAD_BYTES: usize = TENSOR_BYTES + 9;
/// `rpc_tensor | offset u64 | hash u64`.
pub(crate) const HASH_BYTES: usize = TENSOR_BYTES + 16;

/// id, type, buffer, ne, nb, op, op_params, flags, src, view_src, view_offs, data; the use count follows.
const NAME_AT: usize = TENSOR_BYTES - 4 - NAME_BYTES;
const NAME_BYTES: usize = 64;

/// Name of the tensor; empty when it is no text.
fn name(tensor: &[u8]) -> &str {
    let name = tensor.get(NAME_AT..NAME_AT + NAME_BYTES).unwrap_or_default();
    let end = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
    std::str::from_utf8(&name[..end]).unwrap_or_default()
}

/// The front of a SET_TENSOR.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SetTensor<'a> {
    pub(crate) name: &'a str,
    pub(crate) offset: u64,
}

impl<'a> SetTensor<'a> {
    pub(crate) fn of(head: &'a [u8; SET_TENSOR_HEAD_BYTES]) -> Self {
        let (tensor, rest) = head.split_at(TENSOR_BYTES);
        Self { name: name(tensor), offset: number(&rest[1..]) }
    }
}

/// A SET_TENSOR_HASH.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SetTensorHash<'a> {
    pub(crate) tensor: &'a [u8],
    pub(crate) name: &'a str,
    pub(crate) offset: u64,
    pub(crate) fnv: u64,
}

impl<'a> SetTensorHash<'a> {
    pub(crate) fn of(payload: &'a [u8; HASH_BYTES]) -> Self {
        let (tensor, rest) = payload.split_at(TENSOR_BYTES);
        Self { tensor, name: name(tensor), offset: number(rest), fnv: number(&rest[8..]) }
    }

    /// The front of the SET_TENSOR that brings the same bytes, not to be cached by the server.
    pub(crate) fn set_tensor_head(&self) -> [u8; SET_TENSOR_HEAD_BYTES] {
        let mut head = [0; SET_TENSOR_HEAD_BYTES];
        head[..TENSOR_BYTES].copy_from_slice(self.tensor);
        head[TENSOR_BYTES + 1..].copy_from_slice(&self.offset.to_le_bytes());
        head
    }
}

fn number(bytes: &[u8]) -> u64 {
    bytes.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

/// A packed tensor with nothing but a name, for tests.
#[cfg(test)]
pub(crate) fn named(name: &str) -> [u8; TENSOR_BYTES] {
    let mut tensor = [0; TENSOR_BYTES];
    tensor[NAME_AT..NAME_AT + name.len()].copy_from_slice(name.as_bytes());
    tensor
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_lies_behind_the_data_pointer() {
        assert_eq!(NAME_AT, 8 + 4 + 8 + 16 + 16 + 4 + 64 + 4 + 80 + 8 + 8 + 8);
        assert_eq!(name(&named("blk.0.attn_q.weight")), "blk.0.attn_q.weight");
        assert_eq!(name(&named(&"x".repeat(64))), "x".repeat(64), "without an end");
        assert_eq!(name(&[0xff; TENSOR_BYTES]), "", "no text");
    }

    #[test]
    fn a_hash_becomes_the_front_of_the_tensor_that_it_stands_for() {
        let mut payload = [0; HASH_BYTES];
        payload[..TENSOR_BYTES].copy_from_slice(&named("output.weight"));
        payload[TENSOR_BYTES..TENSOR_BYTES + 8].copy_from_slice(&7u64.to_le_bytes());
        payload[TENSOR_BYTES + 8..].copy_from_slice(&9u64.to_le_bytes());
        let hash = SetTensorHash::of(&payload);
        assert_eq!((hash.name, hash.offset, hash.fnv), ("output.weight", 7, 9));
        let head = hash.set_tensor_head();
        assert_eq!(SetTensor::of(&head), SetTensor { name: "output.weight", offset: 7 });
        assert_eq!(head[TENSOR_BYTES], 0, "not to be cached");
    }
}
