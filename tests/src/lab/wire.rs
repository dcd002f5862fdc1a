//! A wire between two hosts with delay, jitter and loss, for kernels that cannot do that themselves.
//!
//! Each host gets a TUN device, and threads carry the packets from one to the other. IPv4 alone.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::sync::oneshot;
use tokio_tun::Tun;

use super::{Host, Lab, Missing, tool};

/// What TUN devices are made with.
const DEVICES: &str = "/dev/net/tun";
/// That of Ethernet.
const MTU: u16 = 1500;
/// Packets on their way in one direction; more are lost, as at a router whose queue is full. Half a second at a gigabit.
const QUEUE_MAX: usize = 40_000;
/// What the first half byte of a packet says. What else the kernel sends of itself would disturb what a seed fixes.
const IPV4: u8 = 4;

/// What a wire does to each packet, in each direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Wire {
    /// How long a packet takes.
    pub delay: Duration,
    /// Added to the delay, evenly from none to this; packets overtake each other then.
    pub jitter: Duration,
    /// Lost of a thousand packets, at most all of them.
    pub loss_per_mille: u16,
    /// Fixes which packets are lost and how late each comes: the same for the nth packet of a direction in every run.
    pub seed: u64,
}

/// A wire that is there. Dropped, it is gone with its devices, while its hosts stay.
#[derive(Debug)]
pub struct Wired {
    addresses: [Ipv4Addr; 2],
    directions: [Arc<Direction>; 2],
    stop: Option<oneshot::Sender<()>>,
    threads: Vec<JoinHandle<()>>,
}

impl Wired {
    /// The addresses of its two ends, the first host's first.
    pub fn addresses(&self) -> [Ipv4Addr; 2] {
        self.addresses
    }

    /// Packets that arrived, from the first host to the second and back.
    pub fn carried(&self) -> [u64; 2] {
        self.directions.each_ref().map(|direction| direction.carried.load(Ordering::Relaxed))
    }

    /// Packets that were lost, from the first host to the second and back.
    pub fn lost(&self) -> [u64; 2] {
        self.directions.each_ref().map(|direction| direction.lost.load(Ordering::Relaxed))
    }
}

impl Drop for Wired {
    fn drop(&mut self) {
        drop(self.stop.take());
        for direction in &self.directions {
            direction.end();
        }
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Lab {
    /// Whether [`Lab::wire`] can be had.
    ///
    /// # Errors
    /// When this machine has no TUN devices; the error says so.
    pub fn check_wire(&self) -> Result<(), Missing> {
        if Path::new(DEVICES).exists() {
            return Ok(());
        }
        Err(Missing(format!("{DEVICES} is not there, so no wire with delay can be had (modprobe tun)")))
    }

    /// A wire from one host to another, with addresses of its own beside those on the hosts' networks.
    ///
    /// # Panics
    /// When it cannot be made; ask [`Lab::check_wire`] first. When more than all packets are to be lost.
    pub fn wire(&mut self, a: &Host, b: &Host, wire: Wire) -> Wired {
        assert!(wire.loss_per_mille <= 1000, "no more than 1000 of a thousand packets can be lost");
        let network = u8::try_from(self.wires).expect("a lab has at most 256 wires");
        self.wires += 1;
        let addresses = [1, 2].map(|last| Ipv4Addr::new(10, 99, network, last));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.expect("a thread and its events");
        let device = format!("wire{network}");
        let tuns = [(a, addresses[0]), (b, addresses[1])].map(|(host, address)| {
            let namespace = host.plug().namespace();
            let build = || {
                let _here = runtime.enter();
                Tun::builder().name(&device).mtu(MTU.into()).build()
            };
            let mut tuns = host.inside(build).unwrap_or_else(|error| panic!("no TUN device: {error}"));
            let tun = tuns.pop().expect("one queue is one device");
            tool::ip(namespace, &["addr", "add", &format!("{address}/24"), "dev", &device]);
            // Room for a burst of a whole window, since the carrier takes packets one by one.
            tool::ip(namespace, &["link", "set", &device, "txqueuelen", "10000", "up"]);
            Arc::new(tun)
        });
        let directions: [Arc<Direction>; 2] = Default::default();
        let [random, random_back] =
            [0, 1].map(|way| StdRng::seed_from_u64(wire.seed.wrapping_mul(2).wrapping_add(way)));
        let mut threads = Vec::new();
        for (direction, far) in directions.iter().zip([1, 0]) {
            let (direction, tun): (_, Arc<Tun>) = (direction.clone(), tuns[far].clone());
            threads.push(std::thread::spawn(move || direction.deliver_to(&tun)));
        }
        let (stop, stopped) = oneshot::channel::<()>();
        let [forth, back] = directions.clone();
        threads.push(std::thread::spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    () = forth.take_from(&tuns[0], wire, random) => {}
                    () = back.take_from(&tuns[1], wire, random_back) => {}
                    _ = stopped => {}
                }
            });
        }));
        Wired { addresses, directions, stop: Some(stop), threads }
    }
}

/// A packet on its way: when it arrives, and its number, so that of two with the same time the earlier one comes first.
type Packet = Reverse<(Instant, u64, Vec<u8>)>;

/// One of the two ways along a wire.
#[derive(Debug, Default)]
struct Direction {
    state: Mutex<Travelling>,
    changed: Condvar,
    carried: AtomicU64,
    lost: AtomicU64,
}

#[derive(Debug, Default)]
struct Travelling {
    packets: BinaryHeap<Packet>,
    taken: u64,
    over: bool,
}

impl Direction {
    fn lock(&self) -> MutexGuard<'_, Travelling> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes packets in until the device is gone.
    async fn take_from(&self, tun: &Tun, wire: Wire, mut random: StdRng) {
        let mut buffer = vec![0; usize::from(MTU)];
        while let Ok(length) = tun.recv(&mut buffer).await {
            let packet = &buffer[..length];
            if packet.first().is_none_or(|first| first >> 4 != IPV4) {
                continue;
            }
            // Both are drawn for each packet, so that what becomes of one does not depend on the others.
            let lost = random.random_range(0..1000) < wire.loss_per_mille;
            let late = wire.jitter.mul_f64(random.random());
            let mut travelling = self.lock();
            if lost || travelling.packets.len() >= QUEUE_MAX {
                self.lost.fetch_add(1, Ordering::Relaxed);
                continue;
            }
            travelling.taken += 1;
            let number = travelling.taken;
            travelling.packets.push(Reverse((Instant::now() + wire.delay + late, number, packet.to_vec())));
            drop(travelling);
            self.changed.notify_one();
        }
    }

    /// Lets packets arrive, each at its time, until it is over.
    fn deliver_to(&self, tun: &Tun) {
        let mut travelling = self.lock();
        while !travelling.over {
            let left = travelling
                .packets
                .peek()
                .map(|Reverse((at, ..))| at.saturating_duration_since(Instant::now()));
            travelling = match left {
                Some(Duration::ZERO) => {
                    let packet = travelling.packets.pop();
                    drop(travelling);
                    if let Some(Reverse((_, _, packet))) = packet {
                        self.arrive(tun, &packet);
                    }
                    self.lock()
                }
                Some(left) => {
                    self.changed.wait_timeout(travelling, left).unwrap_or_else(PoisonError::into_inner).0
                }
                None => self.changed.wait(travelling).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    /// A host takes what a device is given at once, or not at all, as while the device is down.
    fn arrive(&self, tun: &Tun, packet: &[u8]) {
        let count = if tun.try_send(packet).is_ok() { &self.carried } else { &self.lost };
        count.fetch_add(1, Ordering::Relaxed);
    }

    fn end(&self) {
        self.lock().over = true;
        self.changed.notify_all();
    }
}
