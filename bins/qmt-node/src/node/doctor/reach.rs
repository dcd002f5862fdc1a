//! Whether packets pass: to our own address, and to members that are not heard or only through a relay.
//!
//! A QUIC server answers a long header of a version that it does not know with a list of those that it knows (RFC 9000,
//! section 6). So one datagram tells whether UDP passes to a node and back, without a key and without a membership.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use futures_util::future::join_all;
use mesh_control::Finding;
use mesh_gossip::State;
use mesh_transport::PathKind;
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use super::super::Node;
use super::super::chain;
use super::ports::{self, Kind};
use super::{fail, ok, warn};
use crate::config::Config;

/// Sent so often, this far apart: a packet may be lost.
const TRIES: u32 = 3;
const WAIT: Duration = Duration::from_millis(700);
/// Members and addresses of each that are tried; they are tried at once.
const MEMBERS_MAX: usize = 8;
const ADDRS_MAX: usize = 4;
/// A server may drop what is shorter (RFC 9000, section 14.1).
const DATAGRAM_BYTES: usize = 1_200;
/// A version of the kind that is reserved to force a list of versions (RFC 9000, section 15).
const NO_VERSION: [u8; 4] = [0x1a, 0x2a, 0x3a, 0x4a];

/// What came back.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Echo {
    Answered,
    /// Nothing: dropped on the way, or nobody is there.
    Silent,
    /// The machine is there, and nobody has the port, or a firewall says so.
    Refused,
    /// This machine did not let it out.
    NotSent(String),
    /// No way to that machine, or it is off.
    NoWay(String),
}

/// A member as it is reached, and how its addresses answer.
#[derive(Debug)]
struct Reached {
    name: String,
    relayed: bool,
    /// Why the last dial failed.
    why: Option<String>,
    echoes: Vec<(SocketAddr, Echo)>,
}

impl Node {
    /// Tries our own ports by our own addresses, and the addresses of members without a direct link.
    pub(super) async fn check_reach(&self) -> Vec<Finding> {
        let mut own = BTreeSet::new();
        for scope in self.scopes().list() {
            own.extend(self.transport().local_addr(&scope.id()).direct);
        }
        let local: Vec<SocketAddr> = own.into_iter().filter(|addr| is_of_this_machine(addr.ip())).collect();
        let echoes = join_all(local.iter().map(|addr| async move { (*addr, echo(*addr).await) })).await;
        let mut findings: Vec<Finding> = judge_own(&echoes).into_iter().collect();
        let members = join_all(self.unreached_members().into_iter().map(|(reached, addrs)| async move {
            let echoes =
                join_all(addrs.into_iter().map(|addr| async move { (addr, echo(addr).await) })).await;
            Reached { echoes, ..reached }
        }));
        findings.extend(members.await.iter().filter_map(judge_member));
        findings
    }

    /// Members without a direct link of which something is wrong, with the addresses to try.
    fn unreached_members(&self) -> Vec<(Reached, Vec<SocketAddr>)> {
        let links = self.transport().links();
        let mut found = Vec::new();
        for scope in self.scopes().list() {
            let id = scope.id();
            let Some(gossip) = self.gossip(&id) else { continue };
            for member in gossip.members().iter() {
                let link = links.iter().find(|link| link.peer.scope == id && link.peer.id == member.id);
                let relayed = link.is_some_and(|link| link.path.kind == PathKind::Relayed);
                let why = self.transport().unreached(&id, &member.id).map(|error| chain(&error));
                let is_odd = relayed || (link.is_none() && (member.state != State::Alive || why.is_some()));
                if !is_odd {
                    continue;
                }
                let mut addrs = self.transport().book().to_dial(&id, &member.id).direct;
                addrs.truncate(ADDRS_MAX);
                found.push((
                    Reached { name: member.name.to_string(), relayed, why, echoes: Vec::new() },
                    addrs,
                ));
            }
        }
        found.truncate(MEMBERS_MAX);
        found
    }
}

/// Of a node that does not run: whether what is sent to the ports that it will have arrives, by this machine's own address.
pub(super) async fn check_own_ports(config: &Config) -> Vec<Finding> {
    let Some(ip) = own_ip().await else {
        return vec![warn(
            "firewall",
            "this machine has no way to any other: no interface is up",
            "`ip -br addr` shows the interfaces; connect it to a network",
        )];
    };
    let wanted = ports::wanted(config);
    let open = wanted.iter().filter(|wanted| wanted.addr.ip().is_unspecified());
    let looped = join_all(open.map(|wanted| async move {
        let at = SocketAddr::new(ip, wanted.addr.port());
        Some((wanted.kind, at, looped(wanted.kind, wanted.addr, at).await?))
    }));
    looped.await.into_iter().flatten().filter_map(|(kind, at, passed)| judge_loop(kind, at, passed)).collect()
}

/// The address by which this machine reaches others; nothing is sent.
async fn own_ip() -> Option<IpAddr> {
    const SOMEWHERE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), 9); // RFC 5737
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await.ok()?;
    socket.connect(SOMEWHERE).await.ok()?;
    socket.local_addr().ok().map(|addr| addr.ip())
}

/// Whether what is sent to an address of this machine arrives at a socket of ours; none when it cannot be had.
async fn looped(kind: Kind, listen: SocketAddr, at: SocketAddr) -> Option<bool> {
    match kind {
        Kind::Tcp => {
            let _listener = tokio::net::TcpListener::bind(listen).await.ok()?;
            Some(matches!(timeout(WAIT, TcpStream::connect(at)).await, Ok(Ok(_))))
        }
        Kind::Udp => {
            let (hears, sends) = (
                UdpSocket::bind(listen).await.ok()?,
                UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await.ok()?,
            );
            for _ in 0..TRIES {
                let sent = sends.send_to(&[0], at).await;
                if sent.is_ok() && timeout(WAIT, hears.recv_from(&mut [0; 1])).await.is_ok() {
                    return Some(true);
                }
            }
            Some(false)
        }
    }
}

fn judge_loop(kind: Kind, at: SocketAddr, passed: bool) -> Option<Finding> {
    let proto = match kind {
        Kind::Tcp => "tcp",
        Kind::Udp => "udp",
    };
    (!passed).then(|| blocked(proto, at))
}

fn blocked(proto: &str, at: SocketAddr) -> Finding {
    let port = at.port();
    fail(
        "firewall",
        format!(
            "what is sent by {} to this machine's own {at} does not arrive: its firewall drops it",
            proto.to_uppercase()
        ),
        format!(
            "`sudo nft list ruleset` shows the rule; `sudo ufw allow {port}/{proto}`, or `sudo firewall-cmd --permanent --add-port={port}/{proto} && sudo firewall-cmd --reload`, or `sudo nft insert rule inet filter input {proto} dport {port} accept`"
        ),
    )
}

fn judge_own(echoes: &[(SocketAddr, Echo)]) -> Option<Finding> {
    if let Some((at, _)) = echoes.iter().find(|(_, echo)| matches!(echo, Echo::Silent | Echo::NotSent(_))) {
        return Some(blocked("udp", *at));
    }
    let answered: Vec<String> =
        echoes.iter().filter(|(_, echo)| *echo == Echo::Answered).map(|(addr, _)| addr.to_string()).collect();
    let text = || format!("UDP passes to {}, as seen from this machine", answered.join(", "));
    (!answered.is_empty()).then(|| ok("firewall", text()))
}

fn judge_member(member: &Reached) -> Option<Finding> {
    let name = &member.name;
    let at = |wanted: &dyn Fn(&Echo) -> bool| {
        let addrs: Vec<String> =
            member.echoes.iter().filter(|(_, echo)| wanted(echo)).map(|(addr, _)| addr.to_string()).collect();
        (!addrs.is_empty()).then(|| addrs.join(", "))
    };
    if let Some((addr, Echo::NotSent(why))) =
        member.echoes.iter().find(|(_, echo)| matches!(echo, Echo::NotSent(_)))
    {
        return Some(fail(
            "firewall",
            format!("this machine's firewall does not let UDP out to {name} ({addr}): {why}"),
            "`sudo nft list ruleset` shows the rule; `sudo nft insert rule inet filter output meta l4proto udp accept`, or `sudo ufw allow out proto udp to any`",
        ));
    }
    if let Some(addrs) = at(&|echo| *echo == Echo::Answered) {
        // A relayed link whose peer answers directly is about to get better by itself.
        let why = member.why.as_ref().filter(|_| !member.relayed)?;
        return Some(warn(
            "reach",
            format!("{name} answers at {addrs}, but no link opens: {why}"),
            "see `qmt-cli logs` of both nodes",
        ));
    }
    if let Some(addrs) = at(&|echo| *echo == Echo::Silent) {
        let how = if member.relayed { "is reached through a relay only" } else { "is not reached" };
        return Some(warn(
            "firewall",
            format!(
                "{name} {how}: what is sent by UDP to {addrs} is dropped on the way, or that machine sleeps"
            ),
            format!(
                "`qmt-cli doctor` at {name} tells whether its own firewall drops it; let that UDP port in there (`sudo ufw allow PORT/udp`), and forward it in a router that stands between"
            ),
        ));
    }
    if let Some(addrs) = at(&|echo| *echo == Echo::Refused) {
        return Some(warn(
            "reach",
            format!("{name}: nobody has the port at {addrs}"),
            "start qmt-node there; if it runs, its firewall rejects UDP: let that port in",
        ));
    }
    let addrs = at(&|echo| matches!(echo, Echo::NoWay(_)))?;
    Some(warn(
        "reach",
        format!("{name}: no way to {addrs}: that machine is off, or this one is not in its network"),
        format!("switch it on; `ip route get {}` shows the way that is taken", member.echoes[0].0.ip()),
    ))
}

/// Whether one of our interfaces has it: only then do we see our own firewall by it.
fn is_of_this_machine(ip: IpAddr) -> bool {
    !ip.is_loopback() && std::net::UdpSocket::bind((ip, 0)).is_ok()
}

/// What a QUIC server at this address says to a version that there is not.
async fn echo(at: SocketAddr) -> Echo {
    let any: IpAddr = if at.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = match UdpSocket::bind((any, 0)).await {
        Ok(socket) => socket,
        Err(error) => return Echo::NoWay(error.to_string()),
    };
    if let Err(error) = socket.connect(at).await {
        return Echo::NoWay(error.to_string());
    }
    let mut last = Echo::Silent;
    for _ in 0..TRIES {
        if let Err(error) = socket.send(&question()).await {
            last = failed(&error);
            continue;
        }
        let mut bytes = [0; DATAGRAM_BYTES];
        match timeout(WAIT, socket.recv(&mut bytes)).await {
            Ok(Ok(length)) if is_answer(&bytes[..length]) => return Echo::Answered,
            Ok(Ok(_)) => {}
            Ok(Err(error)) => last = failed(&error),
            Err(_) => {}
        }
    }
    last
}

fn failed(error: &std::io::Error) -> Echo {
    match error.kind() {
        ErrorKind::ConnectionRefused => Echo::Refused,
        ErrorKind::PermissionDenied => Echo::NotSent(error.to_string()),
        _ => Echo::NoWay(error.to_string()),
    }
}

/// Long header, a version that nobody has, two connection ids, and padding.
fn question() -> Vec<u8> {
    let mut bytes = vec![0xc0];
    bytes.extend(NO_VERSION);
    for _ in 0..2 {
        bytes.push(8);
        bytes.extend(rand::random::<[u8; 8]>());
    }
    bytes.resize(DATAGRAM_BYTES, 0);
    bytes
}

/// Long header and version 0: a list of versions.
fn is_answer(bytes: &[u8]) -> bool {
    bytes.first().is_some_and(|first| first & 0x80 != 0) && bytes.get(1..5) == Some(&[0; 4])
}

#[cfg(test)]
mod tests {
    use mesh_control::Verdict;

    use super::*;
    use crate::node::Node;

    fn judged(relayed: bool, why: Option<&str>, echo: Echo) -> Option<(Verdict, String, String)> {
        let at = "192.0.2.7:4433".parse().expect("an address");
        let why = why.map(str::to_owned);
        let member = Reached { name: "box".to_owned(), relayed, why, echoes: vec![(at, echo)] };
        judge_member(&member).map(|finding| (finding.verdict, finding.check, finding.detail))
    }

    #[test]
    fn what_comes_back_says_what_stands_between() {
        assert_eq!(judged(true, None, Echo::Answered), None);
        let check =
            |relayed, why, echo| judged(relayed, why, echo).map(|(verdict, check, _)| (verdict, check));
        let found = |verdict, check: &str| Some((verdict, check.to_owned()));
        assert_eq!(check(false, Some("refused"), Echo::Answered), found(Verdict::Warn, "reach"));
        assert_eq!(check(false, None, Echo::Silent), found(Verdict::Warn, "firewall"));
        assert_eq!(check(false, None, Echo::NotSent("x".into())), found(Verdict::Fail, "firewall"));
        assert_eq!(check(false, None, Echo::Refused), found(Verdict::Warn, "reach"));
        assert_eq!(check(false, None, Echo::NoWay("x".into())), found(Verdict::Warn, "reach"));
        let (.., text) = judged(true, None, Echo::Silent).expect("a finding");
        assert!(text.contains("through a relay only") && text.contains("192.0.2.7:4433"), "{text}");
    }

    #[test]
    fn an_own_port_that_is_silent_is_behind_an_own_firewall() {
        let at: SocketAddr = "192.0.2.7:4433".parse().expect("an address");
        let blocked = judge_own(&[(at, Echo::Silent)]).expect("a finding");
        assert_eq!(blocked.verdict, Verdict::Fail);
        assert!(blocked.mend.expect("a mend").contains("ufw allow 4433/udp"));
        assert_eq!(judge_own(&[(at, Echo::Answered)]).map(|found| found.verdict), Some(Verdict::Ok));
        assert_eq!(judge_own(&[]), None);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_node_answers_a_version_that_there_is_not() {
        let home = tempfile::tempdir().expect("a folder");
        let node = Box::pin(Node::start(Config::at(home.path()))).await.expect("starts");
        node.invite(mesh_control::InviteRequest::default()).await.expect("founds a mesh");
        let scope = node.scopes().list()[0].id();
        let port =
            node.transport().local_addr(&scope).direct.first().map(SocketAddr::port).expect("an address");
        assert_eq!(echo((Ipv4Addr::LOCALHOST, port).into()).await, Echo::Answered);
        node.shutdown().await;
        assert_ne!(echo((Ipv4Addr::LOCALHOST, port).into()).await, Echo::Answered);
    }
}
