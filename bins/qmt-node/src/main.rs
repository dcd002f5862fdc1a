//! The QMT mesh service.
fn main() {}
