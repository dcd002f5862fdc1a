//! mesh-tunnel
