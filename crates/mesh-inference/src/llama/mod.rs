//! The llama.cpp programs: where they are, which build they are, and how they are called.

mod arguments;
mod find;

pub use arguments::{Arguments, DraftArguments, RpcArguments, SplitArguments};
pub use find::{FindError, LlamaCpp, Version};
