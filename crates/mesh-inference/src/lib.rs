//! Models: what is on disk, what runs, and how callers reach it.
//!
//! A [`catalogue::Catalogue`] knows the GGUF files of this machine, an [`instance::Instance`] keeps one `llama-server`
//! alive behind a guard process, [`backend::Backends`] lists everything that answers requests here, and [`gateway`]
//! serves them to callers. The crate decides nothing about who is in the mesh and never opens a non-loopback port for a
//! child process.
//!
//! ```
//! # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
//! use std::sync::Arc;
//! use mesh_inference::backend::{Backend, BackendKind, BackendState, Backends, Share};
//! use mesh_inference::gateway::{Gateway, GatewayConfig, Listen, NoPeers};
//!
//! let backends = Backends::new();
//! let (_owner, state) = tokio::sync::watch::channel(BackendState::Ready);
//! backends.insert(Backend {
//!     model: "tiny".into(),
//!     url: "http://127.0.0.1:8080".parse()?, // what answers: llama-server, vLLM, Ollama
//!     upstream_model: None,
//!     auth: None,
//!     share: Share::Members,
//!     state,
//!     slots: None,
//!     kind: BackendKind::Provider,
//!     terms: None,
//! });
//! let mut config = GatewayConfig::default();
//! config.listen = Listen::Exactly(([127, 0, 0, 1], 0).into());
//! let gateway = Gateway::start(config, backends, Arc::new(NoPeers), None).await?;
//! println!("OpenAI-compatible at http://{}/v1", gateway.local_addr());
//! gateway.shutdown().await;
//! # Ok::<(), Box<dyn std::error::Error>>(()) })?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! `docs/protocols/gateway.md` and `docs/protocols/supervision.md` say how both work.

pub mod backend;
pub mod calibrate;
pub mod catalogue;
pub mod chat;
pub mod election;
pub mod fetch;
pub mod gateway;
pub mod gguf;
pub mod hosting;
pub mod instance;
pub mod lease;
pub mod llama;
pub mod memory;
pub mod plan;
pub mod terms;
pub mod weights;
