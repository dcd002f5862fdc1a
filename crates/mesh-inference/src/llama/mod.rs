//! The llama.cpp programs: where they are, which build they are, what they compute on, and how they are called.

mod arguments;
mod devices;
mod find;

pub use arguments::{Arguments, DraftArguments, RpcArguments, SplitArguments};
pub use devices::{Device, devices};
pub use find::{FindError, LlamaCpp, Version};
