//! A gateway in front of one OpenAI-compatible server, without a mesh: `gateway URL MODEL [PORT]`.
//!
//! `cargo run --example gateway -- http://127.0.0.1:8080 my-model 9337`

use std::sync::Arc;
use std::time::Duration;

use mesh_inference::backend::{Backends, Share};
use mesh_inference::gateway::{Gateway, GatewayConfig, Listen, NoPeers, Provider, ProviderConfig};
use mesh_inference::terms::{Api, Quota};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let (Some(url), Some(model)) = (args.next(), args.next()) else {
        return Err("usage: gateway URL MODEL [PORT]".into());
    };
    let mut config = GatewayConfig::default();
    if let Some(port) = args.next() {
        config.listen = Listen::Exactly(([127, 0, 0, 1], port.parse()?).into());
    }
    let backends = Backends::new();
    let provider = ProviderConfig {
        name: "example".into(),
        base_url: url.parse()?,
        api_key: None,
        models: vec![model.as_str().into()],
        share: Share::None,
        refresh: Duration::from_secs(30),
        timeout: Duration::from_secs(5),
        api: Api::OpenAi,
        quota: Quota::default(),
        price: None,
    };
    let mut provider = Provider::start(provider, backends.clone())?;
    let gateway = Gateway::start(config, backends, Arc::new(NoPeers), None).await?;
    println!("listening on {}", gateway.local_addr());
    tokio::signal::ctrl_c().await?;
    gateway.shutdown().await;
    provider.shutdown().await;
    Ok(())
}
