//! What a tunnel costs on loopback beside its link's own stream and beside TCP, in one process.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use futures_util::future::BoxFuture;
use mesh_identity::NodeKey;
use mesh_transport::testing::{Mesh, Site};
use mesh_transport::{Config as Limits, Driver, Member, Protocol, Stream, handler_fn, internet, lan};
use mesh_tunnel::{Config, LocalListener, Offered, Remote, RpcOffer, RpcUse, ServiceName, Tunnels};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::Options;
use crate::report::{Goal, Lacking, Report};
use crate::stats::{estimate, median, ratio};

const BULK: Protocol = Protocol::new("bulk/1");
const ECHO: Protocol = Protocol::new("echo/1");
/// Carried for a rate, and for a quick one.
const BULK_BYTES: usize = 512 << 20;
const BULK_BYTES_QUICK: usize = 128 << 20;
const ROUNDS: usize = 5;
/// For a rate, what a large weight is.
const TENSOR_BYTES: usize = 32 << 20;
const ROUND_TRIPS: usize = 3000;
const ROUND_TRIPS_QUICK: usize = 500;
/// A token's activations in Gemma 3 270m.
const MESSAGE_BYTES: usize = 2560;
/// Bytes of the tensors that llama-server b11434 writes into the first device of a split of that model for each token.
const TOKEN_TENSORS: [usize; 12] = [2560, 2560, 8, 2560, 4, 4, 8, 8, 512, 8, 8, 512];

const RATE_GOAL: Goal = Goal::AtLeast(0.6);
const ADDED_GOAL: Goal = Goal::AtMost(60.0);

/// What carries the link.
#[derive(Debug, Clone, Copy)]
enum Way {
    Quic,
    Tcp,
    Internet,
}

const WAYS: [Way; 3] = [Way::Quic, Way::Tcp, Way::Internet];

impl Way {
    fn name(self) -> &'static str {
        match self {
            Self::Quic => "LAN by QUIC",
            Self::Tcp => "LAN by TCP",
            Self::Internet => "internet",
        }
    }

    fn rate_name(self) -> String {
        format!("{}: tunnel over its link's stream", self.name())
    }

    fn weights_name(self) -> String {
        format!("{}: weights to an rpc-server over its link's stream", self.name())
    }

    fn added_name(self) -> String {
        format!("{}: round trip added by a tunnel, p50", self.name())
    }

    fn token_name(self) -> String {
        format!("{}: a token's frames, added to TCP and its link's round trip, p50", self.name())
    }
}

impl Site for Way {
    fn driver<'a>(&'a self, key: &'a NodeKey) -> BoxFuture<'a, Arc<dyn Driver>> {
        Box::pin(async move {
            let listen = match self {
                Self::Internet => {
                    let driver = internet::Internet::bind(key, internet::Config::loopback()).await;
                    return driver.expect("a port of loopback is free") as Arc<dyn Driver>;
                }
                Self::Tcp => "/ip4/127.0.0.1/tcp/0",
                Self::Quic => "/ip4/127.0.0.1/udp/0/quic-v1",
            };
            let listen = vec![listen.parse().expect("an address")];
            let config = lan::Config { listen, ..lan::Config::default() };
            lan::Lan::bind(key, config).await.expect("a port of loopback is free") as Arc<dyn Driver>
        })
    }
}

/// Measures all ways.
pub(super) fn measure(report: &mut Report, options: &Options) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        for way in WAYS {
            let rounds = rounds(way, options.quick).await.with_context(|| way.name())?;
            rounds.tell(report, way);
        }
        anyhow::Ok(())
    })?;
    report.note(format!(
        "tunnels: both nodes in one process, over loopback. Rates of {} MiB one way; the rpc-server is one that only reads, and answers. \
         Round trips of {MESSAGE_BYTES} bytes and back. A token's frames: fourteen in three writes each as llama-server writes them (twelve tensors, a graph \
         again, a question for a tensor) until the answer is there, less the same exchange on TCP alone, less a round trip on the link's own \
         stream. Rounds: {}.",
        bulk_bytes(options.quick) >> 20,
        if options.quick { 1 } else { ROUNDS },
    ));
    Ok(())
}

/// What a run without this part lacks.
pub(super) fn lacking() -> Lacking {
    let of = |way: Way| {
        let rates = [way.rate_name(), way.weights_name()].map(|name| (name, "x", RATE_GOAL));
        let added = [way.added_name(), way.token_name()].map(|name| (name, "us", ADDED_GOAL));
        rates.into_iter().chain(added)
    };
    WAYS.into_iter().flat_map(of).collect()
}

fn bulk_bytes(quick: bool) -> usize {
    if quick { BULK_BYTES_QUICK } else { BULK_BYTES }
}

/// Figures of all rounds.
#[derive(Debug, Default)]
struct Rounds {
    stream: Vec<f64>,
    tunnel: Vec<f64>,
    weights: Vec<f64>,
    tcp: Vec<f64>,
    added: Vec<f64>,
    token_added: Vec<f64>,
}

impl Rounds {
    fn tell(&self, report: &mut Report, way: Way) {
        let name = |what: &str| format!("{}: {what}", way.name());
        report.row(name("its own stream"), "MB/s", Goal::None, estimate(&self.stream));
        report.row(name("through a tunnel"), "MB/s", Goal::None, estimate(&self.tunnel));
        report.row(way.rate_name(), "x", RATE_GOAL, ratio(&self.tunnel, &self.stream));
        report.row(way.weights_name(), "x", RATE_GOAL, ratio(&self.weights, &self.stream));
        report.row(name("tunnel over raw TCP"), "x", Goal::None, ratio(&self.tunnel, &self.tcp));
        report.row(way.added_name(), "us", ADDED_GOAL, estimate(&self.added));
        report.row(way.token_name(), "us", ADDED_GOAL, estimate(&self.token_added));
    }
}

/// Two nodes with a link, and what is reached over it.
struct Pair {
    mesh: Mesh,
    near: Tunnels,
    far: Tunnels,
    bulk: (SocketAddr, Arc<LocalListener>),
    echo: (SocketAddr, Arc<LocalListener>),
    rpc: (SocketAddr, Arc<LocalListener>),
    _offers: [Offered; 3],
}

impl Pair {
    async fn start(way: Way) -> Result<Self> {
        let mesh = Mesh::start(Arc::new(way), 2, Limits::default()).await;
        let near = Tunnels::start(mesh[0].transport.clone(), Config::default());
        let far = Tunnels::start(mesh[1].transport.clone(), Config::default());
        let swallows = |_: Member, mut stream: Stream| async move { _ = swallow(&mut stream).await };
        mesh[1].transport.serve(BULK, handler_fn(swallows));
        let echoes = |_: Member, mut stream: Stream| async move { _ = echo(&mut stream).await };
        mesh[1].transport.serve(ECHO, handler_fn(echoes));
        let (bulk, plain_echo, rpc) =
            (tcp(Serves::Bulk).await?, tcp(Serves::Echo).await?, tcp(Serves::Rpc).await?);
        let name = |name: &str| ServiceName::new(name).expect("a name");
        let allowed = Arc::new(|_: &Member| true);
        let offer = RpcOffer { allowed, weights: None, build: "b".into(), bytes_max: None };
        let _offers = [
            far.offer(name("bulk"), bulk)?,
            far.offer(name("echo"), plain_echo)?,
            far.offer_rpc(name("rpc"), rpc, offer)?,
        ];
        let remote = |service| Remote { scope: mesh.scope(), peer: mesh[1].id(), service: name(service) };
        let how = RpcUse { weights: None, build: "b".into() };
        Ok(Self {
            bulk: (bulk, near.listen(remote("bulk"))?),
            echo: (plain_echo, near.listen(remote("echo"))?),
            rpc: (rpc, near.listen_rpc(remote("rpc"), how)?),
            mesh,
            near,
            far,
            _offers,
        })
    }

    async fn stream(&self, protocol: Protocol) -> Result<Stream> {
        Ok(self.mesh[0].transport.open(&self.mesh.scope(), &self.mesh[1].id(), protocol).await?)
    }

    async fn close(self) {
        self.near.shutdown().await;
        self.far.shutdown().await;
        self.mesh.shutdown().await;
    }
}

async fn rounds(way: Way, quick: bool) -> Result<Rounds> {
    let site = Pair::start(way).await?;
    let (bytes, trips) = (bulk_bytes(quick), if quick { ROUND_TRIPS_QUICK } else { ROUND_TRIPS });
    let mut all = Rounds::default();
    for _ in 0..if quick { 1 } else { ROUNDS } {
        all.stream.push(bulk_rate(site.stream(BULK).await?, bytes).await?);
        all.tunnel.push(bulk_rate(connect(site.bulk.1.addr()).await?, bytes).await?);
        all.weights.push(rpc_rate(connect(site.rpc.1.addr()).await?, bytes).await?);
        all.tcp.push(bulk_rate(connect(site.bulk.0).await?, bytes).await?);
        let stream = round_trip(site.stream(ECHO).await?, trips).await?;
        let tunnel = round_trip(connect(site.echo.1.addr()).await?, trips).await?;
        let frames = rpc_round_trip(connect(site.rpc.1.addr()).await?, trips).await?;
        let plain_frames = rpc_round_trip(connect(site.rpc.0).await?, trips).await?;
        all.added.push(tunnel - stream);
        all.token_added.push(frames - plain_frames - stream);
    }
    site.close().await;
    Ok(all)
}

async fn connect(at: SocketAddr) -> io::Result<TcpStream> {
    let socket = TcpStream::connect(at).await?;
    socket.set_nodelay(true)?;
    Ok(socket)
}

/// Reads all there is and says that it has.
async fn swallow<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S) -> io::Result<()> {
    let mut buffer = vec![0; 1 << 20];
    while stream.read(&mut buffer).await? > 0 {}
    stream.write_all(&[1]).await?;
    stream.shutdown().await
}

async fn echo<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S) -> io::Result<()> {
    let mut message = vec![0; MESSAGE_BYTES];
    while stream.read_exact(&mut message).await.is_ok() {
        stream.write_all(&message).await?;
        stream.flush().await?;
    }
    Ok(())
}

#[derive(Clone, Copy)]
enum Serves {
    Bulk,
    Echo,
    Rpc,
}

async fn tcp(serves: Serves) -> io::Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let at = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let _ = socket.set_nodelay(true);
            tokio::spawn(async move {
                match serves {
                    Serves::Bulk => swallow(&mut socket).await,
                    Serves::Echo => echo(&mut socket).await,
                    Serves::Rpc => serve_rpc(&mut socket).await,
                }
            });
        }
    });
    Ok(at)
}

/// As much of an rpc-server as is measured: HELLO, SET_TENSOR, and GET_TENSOR with an answer of a message.
async fn serve_rpc(socket: &mut TcpStream) -> io::Result<()> {
    let mut payload = vec![0; TENSOR_BYTES + 305];
    loop {
        let command = socket.read_u8().await?;
        let bytes = usize::try_from(socket.read_u64_le().await?).unwrap_or(usize::MAX);
        let Some(payload) = payload.get_mut(..bytes) else { return Err(io::ErrorKind::InvalidData.into()) };
        socket.read_exact(payload).await?;
        let reply = match command {
            14 => vec![7, 0, 0, 0],
            8 => vec![0; MESSAGE_BYTES],
            1 => vec![0; 8],
            _ => continue,
        };
        let size = (reply.len() as u64).to_le_bytes();
        socket.write_all(&[&size[..], &reply].concat()).await?;
    }
}

fn frame(command: u8, payload: usize) -> Vec<u8> {
    let mut frame = vec![0; 9 + payload];
    frame[0] = command;
    frame[1..9].copy_from_slice(&(payload as u64).to_le_bytes());
    frame
}

async fn call(socket: &mut TcpStream, frame: &[u8]) -> io::Result<()> {
    socket.write_all(frame).await?;
    let mut reply = vec![0; usize::try_from(socket.read_u64_le().await?).unwrap_or(usize::MAX)];
    socket.read_exact(&mut reply).await.map(drop)
}

fn megabytes_per_second(bytes: usize, begun: Instant) -> f64 {
    bytes as f64 / begun.elapsed().as_secs_f64() / 1e6
}

async fn bulk_rate<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S, bytes: usize) -> io::Result<f64> {
    let piece = vec![7; 1 << 20];
    let begun = Instant::now();
    for _ in 0..bytes / piece.len() {
        stream.write_all(&piece).await?;
    }
    stream.shutdown().await?;
    stream.read_exact(&mut [0]).await?;
    Ok(megabytes_per_second(bytes, begun))
}

async fn rpc_rate(mut socket: TcpStream, bytes: usize) -> io::Result<f64> {
    call(&mut socket, &frame(14, 24)).await?;
    let tensor = frame(6, 305 + TENSOR_BYTES);
    let begun = Instant::now();
    for _ in 0..bytes / TENSOR_BYTES {
        socket.write_all(&tensor).await?;
    }
    call(&mut socket, &frame(1, 4)).await?;
    Ok(megabytes_per_second(bytes, begun))
}

/// Microseconds, the median of so many.
async fn round_trip<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S, trips: usize) -> io::Result<f64> {
    let mut message = vec![7; MESSAGE_BYTES];
    let mut took = Vec::with_capacity(trips);
    for _ in 0..trips {
        let begun = Instant::now();
        stream.write_all(&message).await?;
        stream.flush().await?;
        stream.read_exact(&mut message).await?;
        took.push(microseconds(begun.elapsed()));
    }
    Ok(median(&took))
}

/// A token's way through a worker: tensors and GRAPH_RECOMPUTE, without replies, then GET_TENSOR; each in the three writes of a
/// llama-server.
async fn rpc_round_trip(mut socket: TcpStream, trips: usize) -> io::Result<f64> {
    call(&mut socket, &frame(14, 24)).await?;
    let tensors = TOKEN_TENSORS.iter().map(|data| frame(6, 305 + data));
    let frames: Vec<_> = tensors.chain([frame(16, 4)]).collect();
    let last = frame(8, 312);
    let mut took = Vec::with_capacity(trips);
    for _ in 0..trips {
        let begun = Instant::now();
        for frame in &frames {
            for part in [&frame[..1], &frame[1..9], &frame[9..]] {
                socket.write_all(part).await?;
            }
        }
        socket.write_all(&last[..1]).await?;
        socket.write_all(&last[1..9]).await?;
        call(&mut socket, &last[9..]).await?;
        took.push(microseconds(begun.elapsed()));
    }
    Ok(median(&took))
}

fn microseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}
