//! The OpenAI-compatible HTTP front of a node.
