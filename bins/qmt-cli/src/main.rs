//! The QMT mesh command line.
fn main() {}
