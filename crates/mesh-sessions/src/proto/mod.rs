//! The session and its turns, without clock, socket, task or chance.
//!
//! [`Session`] is what a log says: a fold of its events. [`Core`] is what a host does about it: inputs go in, outputs come
//! out, and a driver performs these in order, an append to its acknowledgement. So whatever has an effect stands in the log
//! before it has it, and a core opened on the same log after a crash goes on where the last one was.

mod answer;
mod command;
mod context;
mod core;
mod rules;
mod session;
mod step;
#[cfg(test)]
mod tests;
mod turn;
pub mod wire;

pub use self::command::{
    Command, LABEL_BYTES_MAX, LABELS_MAX, PARTS_MAX, QUEUE_MAX, Refusal, SHARES_MAX, STEERS_MAX,
};
pub use self::context::{Context, Entry, Said};
pub use self::core::{Asking, Core, Input, ModelSaid, Now, Output, Playbook};
pub use self::rules::{Compaction, Interrupted, Limits, Rules, Verdict};
pub use self::session::{Queued, Rest, Session, State};
pub use self::turn::{Call, CallState, Turn};
