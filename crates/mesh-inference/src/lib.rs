//! mesh-inference
