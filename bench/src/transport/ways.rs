//! The ways by which bytes go between two ends: ours, the bare libraries', raw TCP. Each end of each way speaks the same.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use futures_util::future::BoxFuture;
use mesh_identity::NodeKey;
use mesh_transport::testing::bare::{self, Duplex, Library};
use mesh_transport::testing::{Mesh, Site};
use mesh_transport::{
    Call, Config, Driver, Peer, Protocol, handler_fn, internet, internet::Internet, lan, lan::Lan, memory,
    serve_call,
};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::task::JoinSet;

/// Bytes of one write and of one read.
pub(super) const CHUNK_BYTES: usize = 64 * 1024;
/// First byte of a stream: count what follows, answer with the count.
pub(super) const COUNT: u8 = 1;
/// First byte of a stream: send back what follows.
pub(super) const ECHO: u8 = 2;
/// Longest that is sent back.
const ECHO_BYTES_MAX: u64 = 1024 * 1024;
/// Longest wait for anything on loopback.
pub(super) const DEADLINE: Duration = Duration::from_secs(20);

const STREAMS: Protocol = Protocol::new("bench-stream/1");

/// A call that returns what it is given.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Echo {
    pub(super) text: String,
}

impl Call for Echo {
    const PROTOCOL: Protocol = Protocol::new("bench-echo/1");
    type Reply = String;
}

/// Which of our drivers, and by what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ours {
    LanTcp,
    LanQuic,
    Internet,
    Memory,
}

impl Ours {
    /// Those that have a library beside which they are measured.
    pub(super) const CARRIED: [Self; 3] = [Self::LanTcp, Self::LanQuic, Self::Internet];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::LanTcp => "LAN by TCP",
            Self::LanQuic => "LAN by QUIC",
            Self::Internet => "internet",
            Self::Memory => "in memory",
        }
    }

    /// The library that carries it.
    pub(super) fn library(self) -> Option<(Library, &'static str)> {
        match self {
            Self::LanTcp => Some((Library::Libp2pTcp, "libp2p")),
            Self::LanQuic => Some((Library::Noq, "noq")),
            Self::Internet => Some((Library::Iroh, "iroh")),
            Self::Memory => None,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    RawTcp,
    Bare(Library),
    Ours(Ours),
}

/// A place that a node can be at: its address, and the runtime whose threads are there.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub(super) addr: std::net::IpAddr,
    pub(super) runtime: Handle,
}

impl Place {
    pub(super) fn loopback() -> Self {
        Self { addr: [127, 0, 0, 1].into(), runtime: Handle::current() }
    }
}

/// Two ends that are connected; streams are opened at one and served at the other.
pub(super) struct Ends {
    way: Opening,
    /// Serves the far end.
    _serving: JoinSet<()>,
}

enum Opening {
    RawTcp(Handle, SocketAddr),
    Bare(bare::Connection),
    Ours(Box<Mesh>),
}

impl Ends {
    /// Connects by a way on loopback.
    pub(super) async fn connect(way: Way) -> Result<Self> {
        Self::between(way, &[Place::loopback(), Place::loopback()]).await
    }

    /// Connects by a way between two places; a bare library only knows loopback.
    pub(super) async fn between(way: Way, places: &[Place; 2]) -> Result<Self> {
        let connecting = Box::pin(async {
            match way {
                Way::RawTcp => raw_tcp(places).await,
                Way::Bare(library) => bare(library).await,
                Way::Ours(ours) => self::ours(ours, places).await,
            }
        });
        let connected = match tokio::time::timeout(DEADLINE, connecting).await {
            Ok(connected) => connected,
            Err(_) => Err(anyhow::anyhow!("no connection within {DEADLINE:?}")),
        };
        connected.with_context(|| format!("{way:?}"))
    }

    /// A stream to the far end, which serves it.
    pub(super) async fn open(&self) -> Result<Box<dyn Duplex>> {
        Ok(match &self.way {
            Opening::RawTcp(at, addr) => {
                let addr = *addr;
                let socket = at.spawn(async move { TcpStream::connect(addr).await }).await??;
                socket.set_nodelay(true)?;
                Box::new(socket)
            }
            Opening::Bare(connection) => connection.open().await?,
            Opening::Ours(mesh) => {
                Box::new(mesh[0].transport.open(&mesh.scope(), &mesh[1].id(), STREAMS).await?)
            }
        })
    }

    /// One call of ours.
    pub(super) async fn call(&self, call: &Echo) -> Result<String> {
        let Opening::Ours(mesh) = &self.way else { anyhow::bail!("only our own transport has calls") };
        Ok(mesh[0].transport.call(&mesh.scope(), &mesh[1].id(), call, DEADLINE).await?)
    }

    pub(super) async fn close(self) {
        match self.way {
            Opening::RawTcp(..) => {}
            Opening::Bare(connection) => connection.close().await,
            Opening::Ours(mesh) => mesh.shutdown().await,
        }
    }
}

async fn raw_tcp([near, far]: &[Place; 2]) -> Result<Ends> {
    let addr = (far.addr, 0);
    let listener = far.runtime.spawn(async move { TcpListener::bind(addr).await }).await??;
    let way = Opening::RawTcp(near.runtime.clone(), listener.local_addr()?);
    let mut serving = JoinSet::new();
    serving.spawn(async move {
        let mut streams = JoinSet::new();
        while let Ok((socket, _)) = listener.accept().await {
            if socket.set_nodelay(true).is_ok() {
                streams.spawn(serve(socket));
            }
        }
    });
    Ok(Ends { way, _serving: serving })
}

async fn bare(library: Library) -> Result<Ends> {
    let [near, far] = bare::pair(library).await?;
    let mut serving = JoinSet::new();
    serving.spawn(async move {
        let mut streams = JoinSet::new();
        while let Ok(stream) = far.accept().await {
            streams.spawn(serve(stream));
        }
    });
    Ok(Ends { way: Opening::Bare(near), _serving: serving })
}

async fn ours(ours: Ours, places: &[Place; 2]) -> Result<Ends> {
    let site: Arc<dyn Site> = match ours {
        Ours::Memory => Arc::new(memory::Network::new(0)),
        Ours::LanTcp | Ours::LanQuic | Ours::Internet => {
            Arc::new(Sites { ours, places: std::sync::Mutex::new(places.to_vec()) })
        }
    };
    let mesh = Mesh::start(site, 2, Config::default()).await;
    mesh[1].transport.serve(STREAMS, handler_fn(|_: Peer, stream| serve(stream)));
    serve_call::<Echo, _, _>(&mesh[1].transport, |_: Peer, call| async move { Ok(call.text) });
    mesh[0].transport.link(&mesh.scope(), &mesh[1].id()).await?;
    Ok(Ends { way: Opening::Ours(Box::new(mesh)), _serving: JoinSet::new() })
}

/// Gives each node a driver at the next place.
struct Sites {
    ours: Ours,
    places: std::sync::Mutex<Vec<Place>>,
}

impl Site for Sites {
    fn driver<'a>(&'a self, key: &'a NodeKey) -> BoxFuture<'a, Arc<dyn Driver>> {
        Box::pin(async move {
            let place = {
                let mut places = self.places.lock().expect("nobody panics with it");
                places.remove(0)
            };
            let (ours, key, addr) = (self.ours, key.clone(), place.addr);
            // Its sockets are opened by the threads of this runtime, and so where they are.
            let binding = place.runtime.spawn(async move { bind(ours, &key, addr).await });
            let bound = binding.await.expect("binding does not panic");
            bound.unwrap_or_else(|error| panic!("cannot bind {ours:?} at {addr}: {error}"))
        })
    }
}

async fn bind(ours: Ours, key: &NodeKey, addr: std::net::IpAddr) -> Result<Arc<dyn Driver>> {
    let listen = |multiaddr: String| -> Result<lan::Config> {
        Ok(lan::Config { listen: vec![multiaddr.parse()?], ..lan::Config::loopback() })
    };
    Ok(match ours {
        Ours::LanTcp => Lan::bind(key, listen(format!("/ip4/{addr}/tcp/0"))?).await?,
        Ours::LanQuic => Lan::bind(key, listen(format!("/ip4/{addr}/udp/0/quic-v1"))?).await?,
        Ours::Internet => {
            let bind = internet::Bind::Addr((addr, 0).into());
            Internet::bind(key, internet::Config { bind, ..internet::Config::default() }).await?
        }
        Ours::Memory => anyhow::bail!("memory has no address"),
    })
}

/// The far end of a stream, to its end; one that fails shows at the near end.
async fn serve(stream: impl Duplex) {
    let _ = try_serve(stream).await;
}

async fn try_serve(mut stream: impl Duplex) -> std::io::Result<()> {
    match stream.read_u8().await? {
        COUNT => {
            let (mut buffer, mut count) = (vec![0; CHUNK_BYTES], 0_u64);
            loop {
                match stream.read(&mut buffer).await? {
                    0 => break,
                    read => count += read as u64,
                }
            }
            stream.write_u64(count).await?;
        }
        _ => {
            let mut all = Vec::new();
            (&mut stream).take(ECHO_BYTES_MAX).read_to_end(&mut all).await?;
            stream.write_all(&all).await?;
        }
    }
    stream.shutdown().await
}
