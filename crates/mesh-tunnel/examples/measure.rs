//! What a tunnel costs on loopback: bytes a second and the round trip, beside those of the link's own stream.
//!
//! `cargo run --release -p mesh-tunnel --example measure [tcp|quic|internet] [rounds] [buffer KiB]`

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_identity::NodeKey;
use mesh_transport::testing::{Mesh, Site};
use mesh_transport::{Config as Limits, Driver, Member, Protocol, Stream, handler_fn, internet, lan};
use mesh_tunnel::{Config, Remote, RpcOffer, RpcUse, ServiceName, Tunnels};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const BULK: Protocol = Protocol::new("bulk/1");
const ECHO: Protocol = Protocol::new("echo/1");
const BULK_BYTES: usize = 512 << 20;
/// Of the fork's or stock's SET_TENSOR: what a large weight is.
const TENSOR_BYTES: usize = 32 << 20;
const ROUND_TRIPS: usize = 3000;
/// A token's activations in Gemma 3 270m.
const MESSAGE_BYTES: usize = 2560;

struct Loopback(String);

impl Site for Loopback {
    fn driver<'a>(
        &'a self,
        key: &'a NodeKey,
    ) -> std::pin::Pin<Box<dyn Future<Output = Arc<dyn Driver>> + Send + 'a>> {
        Box::pin(async move {
            let listen = match self.0.as_str() {
                "internet" => {
                    let driver = internet::Internet::bind(key, internet::Config::loopback()).await;
                    return driver.expect("binds") as Arc<dyn Driver>;
                }
                "tcp" => "/ip4/127.0.0.1/tcp/0",
                _ => "/ip4/127.0.0.1/udp/0/quic-v1",
            };
            let config =
                lan::Config { listen: vec![listen.parse().expect("an address")], ..lan::Config::default() };
            lan::Lan::bind(key, config).await.expect("binds") as Arc<dyn Driver>
        })
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let way = std::env::args().nth(1).unwrap_or_else(|| "quic".into());
    let rounds = std::env::args().nth(2).map_or(Ok(5), |rounds| rounds.parse())?;
    let buffer_kib: usize = std::env::args().nth(3).map_or(Ok(64), |kib| kib.parse())?;
    let mesh = Mesh::start(Arc::new(Loopback(way.clone())), 2, Limits::default()).await;
    let config = Config { buffer_bytes: buffer_kib * 1024, ..Config::default() };
    let near = Tunnels::start(mesh[0].transport.clone(), config.clone());
    let far = Tunnels::start(mesh[1].transport.clone(), config);
    mesh[1].transport.serve(
        BULK,
        handler_fn(|_: Member, mut stream: Stream| async move { _ = swallow(&mut stream).await }),
    );
    mesh[1]
        .transport
        .serve(ECHO, handler_fn(|_: Member, mut stream: Stream| async move { _ = echo(&mut stream).await }));
    let (bulk, plain_echo) = (tcp(false).await?, tcp(true).await?);
    let rpc = rpc_server().await?;
    let name = |name: &str| ServiceName::new(name).expect("a name");
    let offer = RpcOffer { allowed: Arc::new(|_: &Member| true), weights: None, build: "b".into() };
    let _offers = [
        far.offer(name("bulk"), bulk)?,
        far.offer(name("echo"), plain_echo)?,
        far.offer_rpc(name("rpc"), rpc, offer)?,
    ];
    let remote = |service| Remote { scope: mesh.scope(), peer: mesh[1].id(), service: name(service) };
    let (bulk_tunnel, echo_tunnel) = (near.listen(remote("bulk"))?, near.listen(remote("echo"))?);
    let rpc_tunnel = near.listen_rpc(remote("rpc"), RpcUse { weights: None, build: "b".into() })?;
    let open = async |protocol| mesh[0].transport.open(&mesh.scope(), &mesh[1].id(), protocol).await;
    for round in 0..rounds {
        let stream = bulk_rate(open(BULK).await?).await?;
        let tunnel = bulk_rate(connect(bulk_tunnel.addr()).await?).await?;
        let frames = rpc_rate(connect(rpc_tunnel.addr()).await?).await?;
        let tcp = bulk_rate(connect(bulk).await?).await?;
        println!(
            "{way} {round}: MB/s stream {stream:.0}, tunnel/1 {tunnel:.0} ({:.2}), rpc/1 {frames:.0} ({:.2}), raw TCP {tcp:.0}",
            tunnel / stream,
            frames / stream
        );
        let stream = round_trip(open(ECHO).await?).await?;
        let tunnel = round_trip(connect(echo_tunnel.addr()).await?).await?;
        let frames = rpc_round_trip(connect(rpc_tunnel.addr()).await?).await?;
        let tcp = round_trip(connect(plain_echo).await?).await?;
        let plain_frames = rpc_round_trip(connect(rpc).await?).await?;
        // What the way through the tunnel has beyond the link's own stream and the exchange on TCP itself.
        let us = |it: Duration| it.as_secs_f64() * 1e6;
        println!(
            "{way} {round}: p50 us stream {:.0}, tunnel/1 {:.0} (+{:.0}); a token's frames: TCP {:.0}, rpc/1 {:.0} (+{:.0}); raw TCP {:.0}",
            us(stream),
            us(tunnel),
            us(tunnel) - us(stream),
            us(plain_frames),
            us(frames),
            us(frames) - us(plain_frames) - us(stream),
            us(tcp)
        );
    }
    near.shutdown().await;
    far.shutdown().await;
    mesh.shutdown().await;
    Ok(())
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

async fn tcp(echoes: bool) -> io::Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let at = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let _ = socket.set_nodelay(true);
            tokio::spawn(
                async move { if echoes { echo(&mut socket).await } else { swallow(&mut socket).await } },
            );
        }
    });
    Ok(at)
}

/// As much of an rpc-server as is measured: HELLO, SET_TENSOR, and GET_TENSOR with an answer of a message.
async fn rpc_server() -> io::Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let at = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let _ = socket.set_nodelay(true);
            let _ = serve_rpc(&mut socket).await;
        }
    });
    Ok(at)
}

async fn serve_rpc(socket: &mut TcpStream) -> io::Result<()> {
    let mut payload = vec![0; TENSOR_BYTES + 305];
    loop {
        let command = socket.read_u8().await?;
        let bytes = usize::try_from(socket.read_u64_le().await?).unwrap_or(usize::MAX);
        socket.read_exact(&mut payload[..bytes]).await?;
        let reply = match command {
            14 => vec![7, 0, 0, 0],
            8 => vec![0; MESSAGE_BYTES],
            1 => vec![0; 8],
            _ => continue,
        };
        socket.write_all(&(reply.len() as u64).to_le_bytes()).await?;
        socket.write_all(&reply).await?;
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

async fn bulk_rate<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S) -> io::Result<f64> {
    let piece = vec![7; 1 << 20];
    let begun = Instant::now();
    for _ in 0..BULK_BYTES / piece.len() {
        stream.write_all(&piece).await?;
    }
    stream.shutdown().await?;
    stream.read_exact(&mut [0]).await?;
    Ok(BULK_BYTES as f64 / begun.elapsed().as_secs_f64() / 1e6)
}

async fn rpc_rate(mut socket: TcpStream) -> io::Result<f64> {
    call(&mut socket, &frame(14, 24)).await?;
    let tensor = frame(6, 305 + TENSOR_BYTES);
    let begun = Instant::now();
    for _ in 0..BULK_BYTES / TENSOR_BYTES {
        socket.write_all(&tensor).await?;
    }
    call(&mut socket, &frame(1, 4)).await?;
    Ok(BULK_BYTES as f64 / begun.elapsed().as_secs_f64() / 1e6)
}

async fn round_trip<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S) -> io::Result<Duration> {
    let mut message = vec![7; MESSAGE_BYTES];
    let mut took = Vec::with_capacity(ROUND_TRIPS);
    for _ in 0..ROUND_TRIPS {
        let begun = Instant::now();
        stream.write_all(&message).await?;
        stream.flush().await?;
        stream.read_exact(&mut message).await?;
        took.push(begun.elapsed());
    }
    Ok(median(took))
}

/// A token's way through a worker: SET_TENSOR and GRAPH_RECOMPUTE, without replies, then GET_TENSOR, in the nine writes
/// of a llama-server.
async fn rpc_round_trip(mut socket: TcpStream) -> io::Result<Duration> {
    call(&mut socket, &frame(14, 24)).await?;
    let frames = [frame(6, 305 + MESSAGE_BYTES), frame(16, 4), frame(8, 312)];
    let mut took = Vec::with_capacity(ROUND_TRIPS);
    for _ in 0..ROUND_TRIPS {
        let begun = Instant::now();
        for frame in &frames[..2] {
            for part in [&frame[..1], &frame[1..9], &frame[9..]] {
                socket.write_all(part).await?;
            }
        }
        let [.., last] = &frames;
        socket.write_all(&last[..1]).await?;
        socket.write_all(&last[1..9]).await?;
        call(&mut socket, &last[9..]).await?;
        took.push(begun.elapsed());
    }
    Ok(median(took))
}

fn median(mut took: Vec<Duration>) -> Duration {
    took.sort_unstable();
    took[took.len() / 2]
}
