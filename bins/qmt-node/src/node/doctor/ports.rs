//! Whether the ports that the node wants are there to be had, and who has them.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::Path;

use mesh_control::Finding;
use mesh_transport::relay::QUIC_PORT;

use super::super::start::socket_addr;
use super::{fail, ok, warn};
use crate::config::Config;

/// What a socket is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Tcp,
    Udp,
}

/// A port that the configuration names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) what: &'static str,
    /// Where it is set.
    pub(super) key: &'static str,
    pub(super) addr: SocketAddr,
    pub(super) kind: Kind,
    /// A taken one is an error; else the next free one is taken.
    pub(super) must: bool,
}

/// What became of taking it.
#[derive(Debug, PartialEq, Eq)]
enum Tried {
    Free,
    /// Taken, by whom if that can be seen.
    Taken(Option<String>),
    Refused(String),
}

/// Tries to take each port, for a moment. Of a node that does not run: its own ports would be taken.
pub(super) fn check_ports(config: &Config) -> Vec<Finding> {
    let judged: Vec<Finding> =
        wanted(config).iter().filter_map(|wanted| judge(wanted, &tried(wanted))).collect();
    if judged.is_empty() { vec![ok("port", "those that are asked for are free")] } else { judged }
}

/// Of the running node: whether a port that it did not get was taken.
pub(super) fn moved(what: &str, wanted: SocketAddr, got: SocketAddr) -> Option<Finding> {
    let is_moved = wanted.port() != 0 && wanted.port() != got.port();
    is_moved.then(|| {
        let by = holder(Kind::Tcp, wanted.port()).map_or_else(String::new, |by| format!(" by {by}"));
        let text =
            format!("the {what} is at {got}: when the node started, port {} was taken{by}", wanted.port());
        warn(
            "port",
            text,
            format!("`ss -tlnp 'sport = :{}'` shows by whom; end it, or leave it so", wanted.port()),
        )
    })
}

/// All ports that are set, those that the system chooses left out.
pub(super) fn wanted(config: &Config) -> Vec<Wanted> {
    let any = |port| SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
    let tcp = |what, key, addr, must| Wanted { what, key, addr, kind: Kind::Tcp, must };
    let udp = |what, key, addr, must| Wanted { what, key, addr, kind: Kind::Udp, must };
    let gateway = config.gateway.listener;
    let mut all = vec![tcp("gateway", "[api] port", gateway.addr, gateway.asked)];
    all.extend(config.console.map(|it| tcp("console", "[console] port", it.addr, it.asked)));
    if let Some(port) = config.mesh.internet.bind_port {
        all.push(udp("internet transport", "[mesh.internet] bind_port", any(port), true));
    }
    if let Some(addr) = config.mesh.lan.as_ref().and_then(|lan| socket_addr(&lan.listen)) {
        all.push(tcp("LAN transport", "[mesh] listen", addr, true));
        all.push(udp("LAN transport", "[mesh] listen", addr, true));
    }
    if let Some(relay) = &config.relay {
        all.push(tcp("relay", "[relay] listen", relay.listen, true));
        all.push(udp("relay's address discovery", "[relay]", any(QUIC_PORT), false));
    }
    if let Some(channel) = &config.agent_channel {
        all.push(tcp("agent channel", "[agent_channel] port", channel.listener.addr, channel.listener.asked));
    }
    all.retain(|wanted| wanted.addr.port() != 0);
    all
}

fn tried(wanted: &Wanted) -> Tried {
    let bound = match wanted.kind {
        Kind::Tcp => TcpListener::bind(wanted.addr).map(drop),
        Kind::Udp => UdpSocket::bind(wanted.addr).map(drop),
    };
    match bound {
        Ok(()) => Tried::Free,
        Err(error) if error.kind() == ErrorKind::AddrInUse => {
            Tried::Taken(holder(wanted.kind, wanted.addr.port()))
        }
        Err(error) => Tried::Refused(error.to_string()),
    }
}

fn judge(wanted: &Wanted, tried: &Tried) -> Option<Finding> {
    let Wanted { what, key, addr, kind, must } = wanted;
    let (proto, flag) = match kind {
        Kind::Tcp => ("TCP", "-tlnp"),
        Kind::Udp => ("UDP", "-ulnp"),
    };
    match tried {
        Tried::Free => None,
        Tried::Taken(by) => {
            let by = by.as_ref().map_or_else(String::new, |by| format!(" by {by}"));
            let text = format!("{what}: {proto} {addr} is taken{by}");
            let mend = format!(
                "`ss {flag} 'sport = :{}'` shows by whom; end it, or set another port under {key}",
                addr.port()
            );
            Some(if *must { fail("port", text, mend) } else { warn("port", text, mend) })
        }
        Tried::Refused(why) => Some(fail(
            "port",
            format!("{what}: {proto} {addr} cannot be had: {why}"),
            format!("set an address of this machine and a port above 1023 under {key}"),
        )),
    }
}

/// The process that has a port, as far as this user may see it; of Linux alone.
fn holder(kind: Kind, port: u16) -> Option<String> {
    let files: [&str; 2] = match kind {
        Kind::Tcp => ["/proc/net/tcp", "/proc/net/tcp6"],
        Kind::Udp => ["/proc/net/udp", "/proc/net/udp6"],
    };
    let inode = files.iter().find_map(|file| inode(&std::fs::read_to_string(file).ok()?, kind, port))?;
    let wanted = format!("socket:[{inode}]");
    for entry in std::fs::read_dir("/proc").ok()?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        if has_open(&entry.path(), &wanted) {
            let name = std::fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
            return Some(format!("process {pid} ({})", name.trim()));
        }
    }
    None
}

fn has_open(process: &Path, wanted: &str) -> bool {
    let Ok(open) = std::fs::read_dir(process.join("fd")) else { return false };
    open.flatten()
        .filter_map(|file| std::fs::read_link(file.path()).ok())
        .any(|target| target.to_str() == Some(wanted))
}

/// From the kernel's table: the inode of the socket that listens at a port (TCP), or has it (UDP).
fn inode(table: &str, kind: Kind, port: u16) -> Option<u64> {
    const LISTENS: &str = "0A"; // TCP_LISTEN, include/net/tcp_states.h
    table.lines().skip(1).find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let at = u16::from_str_radix(fields.get(1)?.rsplit(':').next()?, 16).ok()?;
        let is_it = at == port && (kind == Kind::Udp || fields.get(3) == Some(&LISTENS));
        if is_it { fields.get(9)?.parse().ok() } else { None }
    })
}

#[cfg(test)]
mod tests {
    use mesh_control::Verdict;

    use super::*;

    #[test]
    fn the_holder_of_a_port_is_named() {
        let held = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let addr = held.local_addr().expect("bound");
        let wanted = |must| Wanted { what: "gateway", key: "[api] port", addr, kind: Kind::Tcp, must };
        let found = judge(&wanted(true), &tried(&wanted(true))).expect("it is taken");
        assert_eq!(found.verdict, Verdict::Fail);
        if cfg!(target_os = "linux") {
            assert!(found.detail.contains(&format!("by process {}", std::process::id())), "{found:?}");
        }
        assert_eq!(
            judge(&wanted(false), &tried(&wanted(false))).map(|found| found.verdict),
            Some(Verdict::Warn)
        );
        drop(held);
        assert_eq!(tried(&wanted(true)), Tried::Free);
    }

    #[test]
    fn the_kernels_table_is_read() {
        let table = "  sl  local_address rem_address   st tx rx tr tm->when retrnsmt   uid  timeout inode\n   0: 0100007F:2479 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1\n   1: 0100007F:1F90 0100007F:0050 01 00000000:00000000 00:00000000 00000000     0        0 12 1\n";
        assert_eq!(inode(table, Kind::Tcp, 0x2479), Some(4711));
        assert_eq!(inode(table, Kind::Tcp, 0x1F90), None, "it does not listen");
        assert_eq!(inode(table, Kind::Udp, 0x1F90), Some(12));
    }

    #[test]
    fn ports_that_the_system_chooses_are_not_asked_for() {
        let mut config = Config::at("/x");
        config.gateway.listener.addr.set_port(0);
        assert!(wanted(&config).is_empty());
        config.mesh.internet.bind_port = Some(7_000);
        assert_eq!(wanted(&config).len(), 1);
    }
}
