//! What the trust layer promises to the crates above it.

mod attenuation;
mod decode;
mod fixture;
mod forms;
mod grants;
mod key_file;
mod redeem;
mod revocation;
mod tamper;
