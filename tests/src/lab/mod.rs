//! Networks to test in: hosts, LANs and routers with NAT, made of Linux network namespaces, bridges and nftables.
//!
//! Nothing of it touches the machine's own network: every device lives in a namespace whose name carries this process's
//! id, and goes with it. A [`Lab`] deletes its namespaces when it is dropped, also while a test panics; what a killed test
//! left is deleted by the next lab. It needs root, `ip` (iproute2) and `nft` (nftables); [`Lab::new`] says what is missing.
//!
//! ```no_run
//! use qmt_tests::lab::{Cut, Lab, Nat};
//!
//! let mut lab = Lab::new().expect("root, ip and nft");
//! let wan = lab.wan();
//! let home = lab.lan();
//! lab.router(&wan, &home, Nat::Symmetric);
//! let host = lab.host(&home);
//! let answer = host.run("ip", &["route"]);
//! host.plug().cut(Cut::Silent);
//! host.plug().mend();
//! # drop(answer);
//! ```

mod host;
mod ipv6;
mod plan;
mod plug;
mod router;
mod rules;
mod tool;
mod wire;

pub use host::{Host, Process};
pub use plug::{Cut, Plug};
pub use router::Router;
pub use rules::Nat;
pub use wire::{Wire, Wired};

use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use plan::{Subnet, Zone};
use rustix::process::{Pid, Signal, geteuid, kill_process, test_kill_process};

/// What the names of all namespaces of all labs begin with; the process's id follows.
const PREFIX: &str = "qmtlab";

/// Labs of this process, so that tests of one process can run at once.
static LABS: AtomicU32 = AtomicU32::new(0);

/// A set of networks; all that is made in it goes with it.
#[derive(Debug)]
pub struct Lab {
    name: String,
    namespaces: Vec<String>,
    lans: Vec<LanState>,
    /// Made so far.
    wires: usize,
}

/// A network that hosts and routers are plugged into: a bridge.
#[derive(Debug, Clone, Copy)]
pub struct Lan {
    index: usize,
    subnet: Subnet,
}

#[derive(Debug)]
struct LanState {
    namespace: String,
    /// Addresses given away.
    addresses: u8,
    ports: u32,
}

/// Why no lab can be made on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing(String);

impl std::fmt::Display for Missing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Missing {}

impl Lab {
    /// An empty lab. First deletes what labs of processes that are gone have left.
    ///
    /// # Errors
    /// When this machine cannot have one; the error says what it lacks.
    pub fn new() -> Result<Self, Missing> {
        if !geteuid().is_root() {
            return Err(Missing("network namespaces need root; run the tests as root".to_owned()));
        }
        for (program, package) in [("ip", "iproute2"), ("nft", "nftables"), ("tc", "iproute2")] {
            if !tool::is_installed(program) {
                return Err(Missing(format!("{program} is not installed; install the package {package}")));
            }
        }
        sweep();
        let number = LABS.fetch_add(1, Ordering::Relaxed);
        let name = format!("{PREFIX}-{}-{number}", std::process::id());
        let mut lab = Self { name, namespaces: Vec::new(), lans: Vec::new(), wires: 0 };
        lab.check_kernel()?;
        Ok(lab)
    }

    /// Tries all that this kernel must be able to do in one namespace.
    fn check_kernel(&mut self) -> Result<(), Missing> {
        let lacks = |what: String| Missing(format!("this kernel or sandbox lacks what a lab needs: {what}"));
        let namespace = format!("{}-check", self.name);
        self.namespaces.push(namespace.clone());
        tool::try_run("ip", &["netns", "add", &namespace]).map_err(lacks)?;
        let pair = ["-n", &namespace, "link", "add", "veth0", "type", "veth", "peer", "name", "veth1"];
        tool::try_run("ip", &pair).map_err(lacks)?;
        tool::try_run("ip", &["-n", &namespace, "link", "add", "br0", "type", "bridge"]).map_err(lacks)?;
        tool::try_nft(&namespace, &rules::router(Nat::Hairpin, Ipv4Addr::LOCALHOST)).map_err(lacks)?;
        tool::try_nft(&namespace, &rules::firewall6()).map_err(lacks)?;
        tool::try_nft(&namespace, &rules::faults("veth0", 1)).map_err(lacks)
    }

    /// A network of public addresses, where nothing stands between the hosts.
    pub fn wan(&mut self) -> Lan {
        self.network(Zone::Internet)
    }

    /// A network of private addresses, as in a house.
    pub fn lan(&mut self) -> Lan {
        self.network(Zone::House)
    }

    /// A network of a provider's shared addresses (RFC 6598): with a router to the WAN, and routers of houses on it,
    /// these are behind a carrier's NAT and their own.
    pub fn carrier(&mut self) -> Lan {
        self.network(Zone::Carrier)
    }

    fn network(&mut self, zone: Zone) -> Lan {
        let index = self.lans.len();
        let namespace = self.namespace(&format!("lan{index}"));
        tool::ip(&namespace, &["link", "add", "br0", "type", "bridge"]);
        tool::ip(&namespace, &["link", "set", "br0", "up"]);
        self.lans.push(LanState { namespace, addresses: 0, ports: 0 });
        Lan { index, subnet: Subnet::new(zone, index) }
    }

    /// A host on a network, with the next address and the network's first address as its gateway, whether or not a
    /// router is there.
    pub fn host(&mut self, lan: &Lan) -> Host {
        let namespace = self.namespace(&format!("host{}", self.namespaces.len()));
        let plug = self.plug(&namespace, "eth0", lan);
        let address = self.next_address(lan);
        let host = Host::new(*lan, plug, address);
        host.configure(&lan.subnet);
        host
    }

    /// Gives a host another address of its network instead of its own, as a lease that is not renewed does.
    pub fn change_address(&mut self, host: &mut Host) -> Ipv4Addr {
        let lan = host.lan();
        let address = self.next_address(&lan);
        host.set_address(address);
        tool::ip(host.plug().namespace(), &["-4", "addr", "flush", "dev", "eth0"]);
        host.configure(&lan.subnet);
        address
    }

    /// A router from a network to the one outside of it. Like a router at home it lets nothing in that was not asked for.
    pub fn router(&mut self, outside: &Lan, inside: &Lan, nat: Nat) -> Router {
        let namespace = self.namespace(&format!("router{}", self.namespaces.len()));
        let uplink = self.plug(&namespace, rules::OUTSIDE, outside);
        let downlink = self.plug(&namespace, rules::INSIDE, inside);
        let address = self.next_address(outside);
        for (device, address) in [
            (rules::OUTSIDE, outside.subnet.with_length(address)),
            (rules::INSIDE, inside.subnet.with_length(inside.subnet.gateway())),
        ] {
            tool::ip(&namespace, &["addr", "add", &address, "dev", device]);
        }
        tool::ip(&namespace, &["route", "add", "default", "via", &outside.subnet.gateway().to_string()]);
        tool::run("ip", &["netns", "exec", &namespace, "sysctl", "-qw", "net.ipv4.ip_forward=1"]);
        tool::nft(&namespace, &rules::router(nat, address));
        Router::new(uplink, downlink, address)
    }

    /// A namespace with loopback, deleted with the lab.
    fn namespace(&mut self, role: &str) -> String {
        let namespace = format!("{}-{role}", self.name);
        self.namespaces.push(namespace.clone());
        tool::run("ip", &["netns", "add", &namespace]);
        tool::ip(&namespace, &["link", "set", "lo", "up"]);
        namespace
    }

    /// A cable from a namespace to a free port of the network's bridge.
    fn plug(&mut self, namespace: &str, device: &'static str, lan: &Lan) -> Plug {
        let state = &mut self.lans[lan.index];
        state.ports += 1;
        let port = format!("p{}", state.ports);
        let switch = state.namespace.clone();
        tool::ip(
            namespace,
            &["link", "add", device, "type", "veth", "peer", "name", &port, "netns", &switch],
        );
        tool::ip(&switch, &["link", "set", &port, "master", "br0", "up"]);
        tool::ip(namespace, &["link", "set", device, "up"]);
        Plug::new(namespace.to_owned(), device, switch, port)
    }

    fn next_address(&mut self, lan: &Lan) -> Ipv4Addr {
        let state = &mut self.lans[lan.index];
        state.addresses += 1;
        lan.subnet.host(state.addresses)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for namespace in &self.namespaces {
            delete(namespace);
        }
    }
}

/// Deletes the namespaces of processes that are gone.
fn sweep() {
    for namespace in tool::namespaces() {
        if maker(&namespace).is_some_and(|pid| test_kill_process(pid).is_err()) {
            delete(&namespace);
        }
    }
}

/// The process whose lab a namespace belongs to; none when it is not of a lab.
fn maker(namespace: &str) -> Option<Pid> {
    let rest = namespace.strip_prefix(PREFIX)?.strip_prefix('-')?;
    let (pid, _) = rest.split_once('-')?;
    Pid::from_raw(pid.parse().ok()?)
}

/// Ends what still runs in a namespace, then deletes it. Says nothing of failures: it also runs while a test panics, and
/// the next lab tries again.
fn delete(namespace: &str) {
    if !Path::new("/run/netns").join(namespace).exists() {
        return;
    }
    for pid in tool::processes_in(namespace) {
        let _ = kill_process(pid, Signal::KILL);
    }
    let _ = tool::try_run("ip", &["netns", "del", namespace]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_tells_who_made_it() {
        assert_eq!(maker("qmtlab-4711-0-lan3"), Pid::from_raw(4711));
        for foreign in ["qmtlab", "qmtlab-", "qmtlab-x-0-lan1", "qmtlab-0-0-lan1", "qmtlabs-1-0-lan1", "vpn"]
        {
            assert_eq!(maker(foreign), None, "{foreign}");
        }
    }
}
