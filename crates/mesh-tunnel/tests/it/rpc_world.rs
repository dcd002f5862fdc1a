//! A host, workers with fake rpc-servers, and a fake llama-server.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use mesh_transport::Member;
use mesh_transport::testing::Mesh;
use mesh_tunnel::{
    Config, Fnv, LocalListener, Offered, Remote, RpcOffer, RpcUse, ServiceName, Tunnels, Weight, WeightId,
    Weights,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

pub(crate) const HELLO: u8 = 14;
pub(crate) const SET_TENSOR: u8 = 6;
pub(crate) const SET_TENSOR_HASH: u8 = 7;
pub(crate) const GET_TENSOR: u8 = 8;
pub(crate) const GET_ALIGNMENT: u8 = 1;
pub(crate) const GET_MAX_SIZE: u8 = 2;
pub(crate) const ALLOC_BUFFER: u8 = 0;
pub(crate) const FREE_BUFFER: u8 = 4;
pub(crate) const GRAPH_COMPUTE: u8 = 10;
pub(crate) const REGISTER_PEER: u8 = 18;
/// Of the fork: data from another worker.
pub(crate) const PEER_DATA: u8 = 19;
const HASH_ABOVE: usize = 1 << 20;

pub(crate) fn rpc() -> ServiceName {
    ServiceName::new("rpc:tiny/1").unwrap()
}

/// Node 0 is the host, the others are workers.
pub(crate) struct World {
    pub(crate) mesh: Mesh,
    pub(crate) tunnels: Vec<Tunnels>,
}

impl World {
    pub(crate) async fn new(nodes: usize) -> Self {
        Self::with(nodes, Config::default()).await
    }

    pub(crate) async fn with(nodes: usize, config: Config) -> Self {
        let mesh = Mesh::memory(nodes).await;
        let tunnels =
            mesh.nodes().iter().map(|node| Tunnels::start(node.transport.clone(), config.clone())).collect();
        Self { mesh, tunnels }
    }

    pub(crate) fn offer(&self, worker: usize, server: &Server, weights: Option<Arc<dyn Weights>>) -> Offered {
        self.lend(worker, server, weights, None)
    }

    pub(crate) fn lend(
        &self,
        worker: usize,
        server: &Server,
        weights: Option<Arc<dyn Weights>>,
        bytes_max: Option<u64>,
    ) -> Offered {
        let offer = RpcOffer { allowed: Arc::new(|_: &Member| true), weights, build: "b1".into(), bytes_max };
        self.tunnels[worker].offer_rpc(rpc(), server.at, offer).unwrap()
    }

    pub(crate) fn remote(&self, worker: usize) -> Remote {
        Remote { scope: self.mesh.scope(), peer: self.mesh[worker].id(), service: rpc() }
    }

    pub(crate) fn listen(&self, worker: usize, weights: Option<Arc<dyn Weights>>) -> Arc<LocalListener> {
        self.tunnels[0].listen_rpc(self.remote(worker), RpcUse { weights, build: "b1".into() }).unwrap()
    }

    pub(crate) async fn end(self) {
        for tunnels in &self.tunnels {
            tunnels.shutdown().await;
            assert_eq!(tunnels.stats().open, 0, "nothing is left open");
        }
        self.mesh.shutdown().await;
    }
}

/// What a fake rpc-server has seen.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) connections: usize,
    pub(crate) tensors: BTreeMap<String, Vec<u8>>,
    pub(crate) capabilities: Vec<u8>,
    pub(crate) endpoint: Option<SocketAddr>,
    pub(crate) from_peers: Vec<u8>,
    pub(crate) allocations: u64,
    pub(crate) graphs: Vec<Vec<u8>>,
}

/// Answers as ggml-rpc-server does, one connection at a time, and as the fork does when its version is 3.
pub(crate) struct Server {
    pub(crate) at: SocketAddr,
    pub(crate) seen: Arc<Mutex<Seen>>,
}

impl Server {
    pub(crate) async fn start(version: [u8; 3]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let seen = Arc::<Mutex<Seen>>::default();
        let served = Arc::clone(&seen);
        tokio::spawn(async move {
            while let Ok((mut socket, _)) = listener.accept().await {
                served.lock().unwrap().connections += 1;
                let _ = serve(&mut socket, version, &served).await;
            }
        });
        Self { at, seen }
    }

    pub(crate) fn tensor(&self, name: &str) -> Option<Vec<u8>> {
        self.seen.lock().unwrap().tensors.get(name).cloned()
    }
}

async fn serve(socket: &mut TcpStream, version: [u8; 3], seen: &Mutex<Seen>) -> io::Result<()> {
    loop {
        let command = socket.read_u8().await?;
        let mut payload = vec![0; usize::try_from(socket.read_u64_le().await?).unwrap()];
        socket.read_exact(&mut payload).await?;
        let reply = match command {
            HELLO => {
                seen.lock().unwrap().capabilities = payload;
                let stock = [&version[..], &[0], &[9; 24]].concat();
                if version[0] == 7 { stock } else { version.to_vec() }
            }
            SET_TENSOR => {
                seen.lock().unwrap().tensors.insert(name_of(&payload), payload[305..].to_vec());
                continue;
            }
            SET_TENSOR_HASH => vec![0],
            GET_TENSOR => seen.lock().unwrap().tensors.get(&name_of(&payload)).unwrap().clone(),
            ALLOC_BUFFER => {
                let mut seen = seen.lock().unwrap();
                seen.allocations += 1;
                [&(0x1000 + seen.allocations).to_le_bytes()[..], &payload[4..]].concat()
            }
            FREE_BUFFER => continue,
            GRAPH_COMPUTE => {
                seen.lock().unwrap().graphs.push(payload);
                continue;
            }
            GET_ALIGNMENT => 64u64.to_le_bytes().to_vec(),
            GET_MAX_SIZE => 1000u64.to_le_bytes().to_vec(),
            REGISTER_PEER => {
                let text = std::str::from_utf8(&payload[4..]).unwrap().trim_end_matches('\0');
                seen.lock().unwrap().endpoint = Some(text.parse().unwrap());
                vec![1]
            }
            PEER_DATA => {
                seen.lock().unwrap().from_peers = payload;
                vec![1]
            }
            _ => return Ok(()),
        };
        socket.write_all(&[&(reply.len() as u64).to_le_bytes()[..], &reply].concat()).await?;
    }
}

fn name_of(tensor: &[u8]) -> String {
    String::from_utf8(tensor[228..292].to_vec()).unwrap().trim_end_matches('\0').to_owned()
}

pub(crate) fn tensor(name: &str) -> Vec<u8> {
    let mut tensor = vec![0; 296];
    tensor[228..228 + name.len()].copy_from_slice(name.as_bytes());
    tensor
}

pub(crate) fn frame(command: u8, payload: &[u8]) -> Vec<u8> {
    [&[command][..], &(payload.len() as u64).to_le_bytes(), payload].concat()
}

pub(crate) fn fnv(data: &[u8]) -> u64 {
    let mut fnv = Fnv::default();
    fnv.update(data);
    fnv.finish()
}

pub(crate) fn hash_of(name: &str, data: &[u8]) -> Vec<u8> {
    [&tensor(name)[..], &[0; 8], &fnv(data).to_le_bytes()].concat()
}

/// Talks as a llama-server does, in as many writes.
pub(crate) struct Host(pub(crate) TcpStream);

impl Host {
    pub(crate) async fn connect(at: SocketAddr) -> io::Result<(Self, Vec<u8>)> {
        let socket = TcpStream::connect(at).await?;
        socket.set_nodelay(true)?;
        let mut host = Self(socket);
        let hello = host.call(HELLO, &[5; 24]).await?;
        Ok((host, hello))
    }

    pub(crate) async fn tell(&mut self, command: u8, payload: &[u8]) -> io::Result<()> {
        self.0.write_all(&[command]).await?;
        self.0.write_all(&(payload.len() as u64).to_le_bytes()).await?;
        self.0.write_all(payload).await
    }

    pub(crate) async fn call(&mut self, command: u8, payload: &[u8]) -> io::Result<Vec<u8>> {
        self.tell(command, payload).await?;
        self.reply().await
    }

    pub(crate) async fn reply(&mut self) -> io::Result<Vec<u8>> {
        let read = async {
            let mut reply = vec![0; usize::try_from(self.0.read_u64_le().await?).unwrap()];
            self.0.read_exact(&mut reply).await?;
            Ok(reply)
        };
        tokio::time::timeout(Duration::from_secs(20), read).await.expect("a reply or an error")
    }

    /// Asks for memory: where it lies, 0 where there is none.
    pub(crate) async fn allocate(&mut self, bytes: u64) -> io::Result<u64> {
        let reply = self.call(ALLOC_BUFFER, &[&[0; 4][..], &bytes.to_le_bytes()].concat()).await?;
        assert_eq!(reply.len(), 16);
        Ok(u64::from_le_bytes(reply[..8].try_into().unwrap()))
    }

    /// Whether the data itself was sent.
    pub(crate) async fn set_weight(&mut self, name: &str, data: &[u8]) -> io::Result<bool> {
        if data.len() > HASH_ABOVE && self.call(SET_TENSOR_HASH, &hash_of(name, data)).await? == [1] {
            return Ok(false);
        }
        let payload = [&tensor(name)[..], &[0; 9], data].concat();
        self.tell(SET_TENSOR, &payload).await?;
        Ok(true)
    }

    /// All weights of a model, and an end that comes after all of them.
    pub(crate) async fn load(&mut self, model: &Model) -> io::Result<()> {
        let weights = model.weights.lock().unwrap().clone();
        for (name, data) in weights {
            self.set_weight(&name, &data).await?;
        }
        let settled = self.call(GET_ALIGNMENT, &[0; 4]).await?;
        assert_eq!(settled, 64u64.to_le_bytes());
        Ok(())
    }
}

/// A model file in memory.
#[derive(Debug, Default)]
pub(crate) struct Model {
    pub(crate) weights: Mutex<BTreeMap<String, Vec<u8>>>,
    listed: Mutex<Vec<Weight>>,
}

impl Model {
    /// Twenty small tensors and one above the threshold of the hash question.
    pub(crate) fn new(seed: u8) -> Arc<Self> {
        let mut weights = BTreeMap::new();
        for number in 0..20u8 {
            let bytes =
                (0..50_000u32).map(|at| at.to_le_bytes()[0].wrapping_mul(2 * seed + 1) ^ number).collect();
            weights.insert(format!("blk.{number}.ffn_up.weight"), bytes);
        }
        weights.insert("output.weight".to_owned(), vec![seed; 3 << 20]);
        let weight = |(name, data): (&String, &Vec<u8>)| Weight {
            id: WeightId(*blake3::hash(data).as_bytes()),
            fnv: fnv(data),
            bytes: data.len() as u64,
            name: name.clone(),
        };
        let listed = weights.iter().map(weight).collect();
        Arc::new(Self { weights: Mutex::new(weights), listed: Mutex::new(listed) })
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.weights.lock().unwrap().values().map(|data| data.len() as u64).sum()
    }

    pub(crate) fn is_loaded_at(&self, server: &Server) -> bool {
        server.seen.lock().unwrap().tensors == *self.weights.lock().unwrap()
    }
}

impl Weights for Model {
    fn file(&self) -> String {
        "tiny.gguf".into()
    }

    fn list(&self) -> Arc<[Weight]> {
        self.listed.lock().unwrap().as_slice().into()
    }

    fn read(&self, weight: &WeightId, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let name =
            self.listed.lock().unwrap().iter().find(|listed| listed.id == *weight).unwrap().name.clone();
        let offset = usize::try_from(offset).unwrap();
        match self.weights.lock().unwrap()[&name].get(offset..offset + buffer.len()) {
            Some(bytes) => {
                buffer.copy_from_slice(bytes);
                Ok(())
            }
            None => {
                self.forget(weight);
                Err(io::ErrorKind::UnexpectedEof.into())
            }
        }
    }

    fn forget(&self, weight: &WeightId) {
        self.listed.lock().unwrap().retain(|listed| listed.id != *weight);
    }
}
