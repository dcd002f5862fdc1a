//! The worker's side of leases.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use mesh_identity::NodeId;
use mesh_transport::{
    FrameError, FrameReader, Member, RecvStream, ResetCode, SendStream, Stream, Transport, handler_fn,
    write_message,
};
use mesh_tunnel::{Offered, RpcOffer, ServiceName, Tunnels, Weights};
use tokio::io::AsyncWriteExt;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::beat::{keep, write_within};
use super::table::{LeaseNumber, Table, Verdict};
use super::wire::{Ask, FRAME_BYTES_MAX, RefusalCode, RefusalWire, ToHost, ToWorker, bounded};
use super::{LeaseConfig, PROTOCOL};
use crate::instance::{GuardCommand, RpcLaunch, RpcServer};
use crate::memory::Ledger;

/// For the question, which follows the stream's header at once.
const ASK_WITHIN: Duration = Duration::from_secs(5);

/// What this node lends, and how.
#[derive(Clone)]
pub struct LenderConfig {
    /// `rpc-server`; none where llama.cpp brings none: this node then refuses, and says so.
    pub rpc_server: Option<PathBuf>,
    /// The build of llama.cpp, as `llama-server --version` says it.
    pub build: String,
    /// The folder of this node's files.
    pub home: PathBuf,
    /// How a guard is started.
    pub guard: GuardCommand,
    /// Devices to lend, in llama.cpp's words; empty is all GPUs, or the processor where there is none.
    pub devices: Vec<String>,
    /// Threads of a processor's share; `None` is one a core.
    pub threads: Option<std::num::NonZeroU32>,
    /// Hosts that it lends to at a time. Default 16.
    pub leases_max: usize,
    /// The weights of a model on this machine's disk, which then need not cross the network.
    pub weights: WeightsOf,
    /// Times.
    pub times: LeaseConfig,
}

/// Finds the weights of a model by its name; `None` where this machine has no such model. May take as long as reading the file.
pub type WeightsOf = Arc<dyn Fn(String) -> BoxFuture<'static, Option<Arc<dyn Weights>>> + Send + Sync>;

/// A lease that this node has granted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lent {
    /// To whom.
    pub host: NodeId,
    /// For which model.
    pub model: String,
    /// By which election.
    pub epoch: u64,
}

/// Serves `lease/1` on a transport. Clones share it; when the last one is dropped, every lease ends.
#[derive(Clone)]
pub struct Lender {
    inner: Arc<Inner>,
}

struct Inner {
    config: LenderConfig,
    tunnels: Tunnels,
    ledger: Ledger,
    state: Mutex<State>,
    /// Held from a verdict to the entry in the table, so that verdicts are given one after the other.
    deciding: tokio::sync::Mutex<()>,
    stop: CancellationToken,
    tasks: TaskTracker,
    changed: tokio::sync::watch::Sender<u64>,
}

#[derive(Debug)]
struct State {
    table: Table,
    /// How each lease is ended, and seen to have ended.
    ends: BTreeMap<LeaseNumber, End>,
}

#[derive(Debug, Clone)]
struct End {
    cancel: CancellationToken,
    over: CancellationToken,
}

impl Lender {
    /// Lends from now on. One per transport.
    pub fn start(transport: &Transport, tunnels: Tunnels, ledger: Ledger, config: LenderConfig) -> Self {
        let state = State { table: Table::new(config.leases_max), ends: BTreeMap::new() };
        let inner = Arc::new(Inner {
            config,
            tunnels,
            ledger,
            state: Mutex::new(state),
            deciding: tokio::sync::Mutex::default(),
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
            changed: tokio::sync::watch::Sender::new(0),
        });
        // Weak: the transport keeps its handlers, and a handler must not keep the lender.
        let served = Arc::downgrade(&inner);
        transport.serve(
            PROTOCOL,
            handler_fn(move |host: Member, stream: Stream| {
                let served = served.upgrade();
                async move {
                    let Some(inner) = served else { return stream.reset(ResetCode::NOT_ALLOWED) };
                    // On a task of its own: what it holds is given back in order even when the link ends.
                    let tasks = inner.tasks.clone();
                    let _ = tasks.spawn(inner.serve(host, stream)).await;
                }
            }),
        );
        Self { inner }
    }

    /// What is lent now.
    pub fn lent(&self) -> Vec<Lent> {
        let of = |held: &super::table::Held| Lent {
            host: held.host,
            model: held.model.clone(),
            epoch: held.epoch,
        };
        self.inner.state().table.list().map(of).collect()
    }

    /// Signals that a lease came or went (a counter).
    pub fn watch(&self) -> tokio::sync::watch::Receiver<u64> {
        self.inner.changed.subscribe()
    }

    /// Takes everything back and lends no more. Returns when no rpc-server is left. Idempotent.
    pub async fn shutdown(&self) {
        self.inner.stop.cancel();
        self.inner.tasks.close();
        self.inner.tasks.wait().await;
    }
}

impl fmt::Debug for Lender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lender").field("lent", &self.lent()).finish_non_exhaustive()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// What a lease holds; dropping it gives everything back but the wait for it.
struct Granted {
    server: RpcServer,
    /// Not reachable any more once this is dropped.
    offered: Offered,
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn serve(self: Arc<Self>, host: Member, stream: Stream) {
        let (mut send, recv) = stream.split();
        let mut reader = FrameReader::new(recv, FRAME_BYTES_MAX);
        let ask = match tokio::time::timeout(ASK_WITHIN, reader.next_message::<ToWorker>()).await {
            Ok(Ok(Some(ToWorker::Ask(ask)))) if ask.is_bounded() => ask,
            Ok(Err(FrameError::Io(_))) => return,
            _ => {
                let refusal = refused(RefusalCode::Malformed, "that was no question for a lease");
                return answer(send, refusal).await;
            }
        };
        let deciding = self.deciding.lock().await;
        let ends = match self.judge(&host, &ask) {
            Ok(ends) => ends,
            Err(refusal) => return answer(send, refusal).await,
        };
        for end in ends {
            end.cancel.cancel();
            end.over.cancelled().await;
        }
        let reservation = match self.ledger.reserve(&*ask.model, ask.bytes) {
            Ok(reservation) => reservation,
            Err(error) => return answer(send, refused(RefusalCode::Memory, error.to_string())).await,
        };
        let end = End { cancel: self.stop.child_token(), over: CancellationToken::new() };
        let over = end.over.clone().drop_guard();
        let cancel = end.cancel.clone();
        let number = {
            let mut state = self.state();
            let number = state.table.insert(host.id, &ask);
            state.ends.insert(number, end);
            number
        };
        drop(deciding);
        self.changed.send_modify(|count| *count += 1);
        let why = self.lend(&host, &ask, &mut send, &mut reader, &cancel).await;
        tracing::info!(host = %host.id.short(), model = ask.model, why, "a lease is over");
        let _ =
            write_within(&mut send, &ToHost::Ended { why: bounded(why) }, &self.config.times, "host").await;
        {
            let mut state = self.state();
            state.table.remove(number);
            state.ends.remove(&number);
        }
        drop((reservation, over));
        self.changed.send_modify(|count| *count += 1);
        let _ = tokio::time::timeout(self.config.times.silence_max, send.shutdown()).await;
    }

    fn judge(&self, host: &Member, ask: &Ask) -> Result<Vec<End>, RefusalWire> {
        if self.stop.is_cancelled() {
            return Err(refused(RefusalCode::NotLending, "this node is stopping"));
        }
        if self.config.rpc_server.is_none() {
            return Err(refused(RefusalCode::NoServer, "this node has no rpc-server of llama.cpp"));
        }
        if ask.build != self.config.build {
            let text = format!(
                "this node runs llama.cpp {:?}, the host {:?}; both must be one build",
                self.config.build, ask.build
            );
            return Err(refused(RefusalCode::OtherBuild, text));
        }
        let state = self.state();
        match state.table.judge(&host.id, ask) {
            Verdict::Lend { ends } => {
                Ok(ends.iter().filter_map(|number| state.ends.get(number).cloned()).collect())
            }
            Verdict::Held { host, epoch } => {
                let text = format!("{} has {} by epoch {epoch}", host.short(), ask.model);
                Err(RefusalWire { holder: Some((host, epoch)), ..refused(RefusalCode::Held, text) })
            }
            Verdict::No(code, text) => Err(refused(code, text)),
        }
    }

    /// Starts the rpc-server, lends it, and says why that is over. Nothing of it runs when this returns or is dropped.
    async fn lend(
        &self,
        host: &Member,
        ask: &Ask,
        send: &mut SendStream,
        reader: &mut FrameReader<RecvStream>,
        cancel: &CancellationToken,
    ) -> String {
        let granted = tokio::select! {
            biased;
            granted = self.grant(host, ask) => granted,
            why = self.wait_for_end(send, reader, cancel) => Err(why),
        };
        let granted = match granted {
            Ok(granted) => granted,
            Err(why) => {
                self.tell_end(send, &why).await;
                return why;
            }
        };
        let service = granted.offered.name().as_str().to_owned();
        tracing::info!(host = %host.id.short(), model = ask.model, epoch = ask.epoch, bytes = ask.bytes, "memory is lent");
        let why = match write_within(send, &ToHost::Granted { service }, &self.config.times, "host").await {
            Ok(()) => {
                tokio::select! {
                    biased;
                    why = granted.server.ended() => format!("the worker's rpc-server is gone: {why}"),
                    () = granted.server.halted(self.config.times.silence_max) => {
                        format!("the worker's rpc-server has been halted for {:?}", self.config.times.silence_max)
                    }
                    why = self.wait_for_end(send, reader, cancel) => why,
                }
            }
            Err(why) => why,
        };
        drop(granted.offered);
        // Before the wait for its end, in which nobody beats.
        self.tell_end(send, &why).await;
        granted.server.stop().await;
        why
    }

    async fn tell_end(&self, send: &mut SendStream, why: &str) {
        let ended = ToHost::Ended { why: bounded(why.to_owned()) };
        let _ = write_within(send, &ended, &self.config.times, "host").await;
    }

    async fn grant(&self, host: &Member, ask: &Ask) -> Result<Granted, String> {
        let config = &self.config;
        let program = config.rpc_server.clone().ok_or("this node has no rpc-server")?;
        let name = format!("rpc-{}", ask.model);
        let mut launch = RpcLaunch::new(program, name, config.home.clone(), config.guard.clone());
        launch.devices = config.devices.clone();
        launch.threads = config.threads;
        let (server, weights) = tokio::join!(RpcServer::start(launch), (config.weights)(ask.model.clone()));
        let server = server.map_err(|error| error.to_string())?;
        let service = random_service().map_err(|error| format!("no randomness: {error}"))?;
        let mut borrowers = ask.workers.clone();
        borrowers.push(host.id);
        let offer = RpcOffer {
            allowed: Arc::new(move |member: &Member| borrowers.contains(&member.id)),
            weights,
            build: config.build.clone(),
            bytes_max: Some(ask.bytes),
        };
        let offered =
            self.tunnels.offer_rpc(service, server.addr(), offer).map_err(|error| error.to_string())?;
        Ok(Granted { server, offered })
    }

    /// Keeps the lease until the host ends it or it is taken back; says which.
    async fn wait_for_end(
        &self,
        send: &mut SendStream,
        reader: &mut FrameReader<RecvStream>,
        cancel: &CancellationToken,
    ) -> String {
        let ends = |message| match message {
            ToWorker::Beat => None,
            ToWorker::Ask(_) => Some("the host asked twice on one lease".into()),
        };
        tokio::select! {
            biased;
            // A later election of the same model has it, or this node stops.
            () = cancel.cancelled() => "the worker has taken it back".into(),
            why = keep(send, reader, &self.config.times, &ToHost::Beat, "host", ends) => why,
        }
    }
}

fn refused(code: RefusalCode, text: impl Into<String>) -> RefusalWire {
    RefusalWire { code: code.to_wire(), text: bounded(text.into()), holder: None }
}

async fn answer(mut send: SendStream, refusal: RefusalWire) {
    let written = async {
        write_message(&mut send, &ToHost::Refused(refusal), FRAME_BYTES_MAX).await?;
        send.shutdown().await?;
        Ok::<(), FrameError>(())
    };
    let _ = tokio::time::timeout(ASK_WITHIN, written).await;
}

/// Not to be guessed by those whom it is not lent to.
fn random_service() -> Result<ServiceName, getrandom::Error> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes)?;
    let name = format!("rpc:{}", bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>());
    Ok(ServiceName::new(name).expect("hexadecimal digits after a prefix are a service's name"))
}
