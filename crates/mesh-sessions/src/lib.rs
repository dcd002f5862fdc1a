//! mesh-sessions
