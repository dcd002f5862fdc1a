//! Nodes with real keys and real grants in a few lines, and the suite that every driver passes.
//!
//! ```
//! use mesh_transport::{Peer, Protocol, Stream, handler_fn, testing::Mesh};
//! use tokio::io::{AsyncReadExt, AsyncWriteExt};
//!
//! # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
//! const ECHO: Protocol = Protocol::new("echo/1");
//! let mesh = Mesh::memory(2).await;
//! mesh[1].transport.serve(ECHO, handler_fn(|_peer: Peer, mut stream: Stream| async move {
//!     let mut said = Vec::new();
//!     if stream.read_to_end(&mut said).await.is_ok() && stream.write_all(&said).await.is_ok() {
//!         drop(stream.shutdown().await);
//!     }
//! }));
//! let mut stream = mesh[0].transport.open(&mesh.scope(), &mesh[1].id(), ECHO).await?;
//! stream.write_all(b"hello").await?;
//! stream.shutdown().await?;
//! let mut answer = Vec::new();
//! stream.read_to_end(&mut answer).await?;
//! assert_eq!(answer, b"hello");
//! mesh.shutdown().await;
//! # Ok::<(), Box<dyn std::error::Error>>(()) })?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod admission;
pub mod bare;
pub mod contract;
mod mesh;

pub use admission::TestAdmission;
pub use mesh::{Mesh, Site, TestNode, until};
