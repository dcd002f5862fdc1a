//! What the router promises, from outside.

mod choice;
mod fallback;
mod names;
mod properties;
mod world;
