//! How much of what the libraries below give arrives at our streams. Run alone:
//! `cargo test --release -p mesh-transport --lib throughput -- --ignored --nocapture`.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::future::{BoxFuture, join_all};
use mesh_identity::{NodeKey, ScopeId};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_util::compat::FuturesAsyncReadCompatExt;

use super::{
    Config, Lan,
    addr::{Carrier, multiaddr},
    connection::LanConnection,
    quic::bare,
};
use crate::connection::{Connection, Driver};

/// Moved by one measurement, all streams together.
const BYTES: usize = 512 << 20;
const CHUNK: usize = 64 * 1024;
const ROUNDS: usize = 5;
/// Of each measurement in a row the best counts: others are at work on the machine too.
const ROUND_TRIPS: usize = 300;

type Write = Box<dyn AsyncWrite + Send + Unpin>;
type Read = Box<dyn AsyncRead + Send + Unpin>;
/// One end, and the other, which may not be there before the first has written.
type Pair = ((Read, Write), BoxFuture<'static, (Read, Write)>);
/// Makes a stream.
type Open = Box<dyn Fn() -> BoxFuture<'static, Pair> + Send>;

async fn pump(mut write: Write, bytes: usize) -> Write {
    let chunk = vec![7; CHUNK];
    for _ in 0..bytes / CHUNK {
        write.write_all(&chunk).await.expect("writes");
    }
    write.flush().await.expect("flushes");
    write
}

async fn drain(mut read: Read, bytes: usize) -> Read {
    let (mut chunk, mut left) = (vec![0; CHUNK], bytes / CHUNK * CHUNK);
    while left > 0 {
        left -= read.read(&mut chunk[..CHUNK.min(left)]).await.expect("reads");
    }
    read
}

/// Bytes per second over so many streams at once.
async fn rate(open: &Open, streams: usize) -> f64 {
    let each = BYTES / streams;
    let pairs = join_all((0..streams).map(|_| open())).await;
    let begin = Instant::now();
    let moves = pairs.into_iter().map(|((near_read, near_write), far)| {
        let writing = tokio::spawn(pump(near_write, each));
        let reading = tokio::spawn(async move {
            let (far_read, far_write) = far.await;
            (drain(far_read, each).await, far_write)
        });
        async move {
            // Dropped when all are done: the far end of one may belong to the near end of another.
            (writing.await.expect("ends"), reading.await.expect("ends"), near_read)
        }
    });
    drop(join_all(moves).await);
    BYTES as f64 / begin.elapsed().as_secs_f64()
}

/// One open and one call of so many bytes each way: the best of many.
async fn round_trip(open: &Open, bytes: usize) -> Duration {
    let mut best = Duration::MAX;
    for _ in 0..ROUND_TRIPS {
        let begin = Instant::now();
        let ((mut near_read, mut near_write), far) = open().await;
        let echo = async {
            let (mut far_read, mut far_write) = far.await;
            let mut said = vec![0; bytes];
            far_read.read_exact(&mut said).await.expect("reads");
            far_write.write_all(&said).await.expect("writes");
            far_write.flush().await.expect("flushes");
            // Dropped before it is over, a stream takes back what it has not yet sent.
            (far_read, far_write)
        };
        let call = async {
            let mut said = vec![7; bytes];
            near_write.write_all(&said).await.expect("writes");
            near_write.flush().await.expect("flushes");
            near_read.read_exact(&mut said).await.expect("reads");
        };
        let ends = tokio::join!(echo, call);
        best = best.min(begin.elapsed());
        drop(ends);
    }
    best
}

fn raw_tcp() -> Open {
    Box::new(|| {
        Box::pin(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
            let near = TcpStream::connect(listener.local_addr().expect("has one")).await.expect("connects");
            let (far, _) = listener.accept().await.expect("accepts");
            for socket in [&near, &far] {
                socket.set_nodelay(true).expect("sets");
            }
            (halves(near), far_is(halves(far)))
        })
    })
}

fn far_is(far: (Read, Write)) -> BoxFuture<'static, (Read, Write)> {
    Box::pin(std::future::ready(far))
}

fn halves(stream: impl AsyncRead + AsyncWrite + Send + 'static) -> (Read, Write) {
    let (read, write) = tokio::io::split(stream);
    (Box::new(read), Box::new(write))
}

/// Two linked drivers; the first stream is what tells the acceptor of the connection.
struct Drivers {
    near: LanConnection,
    far: LanConnection,
    _held: [Arc<Lan>; 2],
}

async fn drivers(carrier: Carrier) -> Arc<Drivers> {
    let any: SocketAddr = ([127, 0, 0, 1], 0).into();
    let config = Config { listen: vec![multiaddr(any, carrier)], ..Config::loopback() };
    let keys = [1, 2].map(|seed| NodeKey::from_seed([seed; 32]));
    let near = Lan::bind(&keys[0], config.clone()).await.expect("binds");
    let far = Lan::bind(&keys[1], config).await.expect("binds");
    let addr = multiaddr(far.local_addr(&ScopeId::lan(None)).lan[0], carrier);
    let conn = near.dial_at(keys[1].node_id(), addr).await.expect("connects");
    let (stream, accepted) = tokio::join!(
        async {
            let mut stream = conn.open().await.expect("opens");
            stream.write_all(b"first").await.expect("writes");
            stream
        },
        far.accept_inside()
    );
    let accepted = accepted.expect("arrives");
    drop((stream, accepted.accept().await.expect("arrives")));
    conn.admitted();
    accepted.admitted();
    Arc::new(Drivers { near: conn, far: accepted, _held: [near, far] })
}

/// Our streams.
fn ours(drivers: Arc<Drivers>) -> Open {
    Box::new(move || {
        let drivers = drivers.clone();
        Box::pin(async move {
            let near = halves(drivers.near.open().await.expect("opens"));
            let far: BoxFuture<'static, _> =
                Box::pin(async move { halves(drivers.far.accept().await.expect("arrives")) });
            (near, far)
        })
    })
}

/// libp2p's streams, as they are before they are ours.
fn libp2p(drivers: Arc<Drivers>) -> Open {
    Box::new(move || {
        let drivers = drivers.clone();
        Box::pin(async move {
            let near = halves(drivers.near.open_bare().await.compat());
            let far: BoxFuture<'static, _> =
                Box::pin(async move { halves(drivers.far.accept_bare().await.compat()) });
            (near, far)
        })
    })
}

/// The QUIC below, without libp2p.
fn noq(pair: Arc<bare::Pair>) -> Open {
    Box::new(move || {
        let pair = pair.clone();
        Box::pin(async move {
            let (write, read) = pair.open().await;
            let far: BoxFuture<'static, (Read, Write)> = Box::pin(async move {
                let (write, read) = pair.accept().await;
                (Box::new(read) as Read, Box::new(write) as Write)
            });
            ((Box::new(read) as Read, Box::new(write) as Write), far)
        })
    })
}

async fn measure(name: &str, open: &Open) {
    let (mut one, mut eight) = (0f64, 0f64);
    for _ in 0..ROUNDS {
        one = one.max(rate(open, 1).await);
        eight = eight.max(rate(open, 8).await);
    }
    let (small, large) = (round_trip(open, 1024).await, round_trip(open, 16 * 1024).await);
    println!(
        "{name:12} 1 stream {:5.0} MB/s  8 streams {:5.0} MB/s  1 KiB {small:?}  16 KiB {large:?}",
        one / 1e6,
        eight / 1e6
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement, not a claim"]
async fn throughput() {
    measure("raw TCP", &raw_tcp()).await;
    for carrier in [Carrier::Tcp, Carrier::Quic] {
        let drivers = drivers(carrier).await;
        if carrier == Carrier::Quic {
            measure("noq", &noq(Arc::new(bare::Pair::new().await))).await;
        }
        measure(&format!("libp2p {carrier:?}"), &libp2p(drivers.clone())).await;
        measure(&format!("ours {carrier:?}"), &ours(drivers)).await;
    }
}
