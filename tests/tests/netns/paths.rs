//! By which way two nodes reach each other, for what lies between them.

use std::fmt::Write;
use std::path::Path as FilePath;
use std::time::Instant;

use qmt_tests::lab::{Host, Lab, Lan, Nat};

use crate::mesh::{self, Node, Programs, until};

/// Where a node is.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Place {
    /// On the internet, with a public address.
    Public,
    /// In the one house that both nodes of the row are in, with no router.
    Home,
    /// In the one house that both nodes of the row are in, behind this NAT.
    House(Nat),
    /// In a house of its own behind this NAT.
    Behind(Nat),
    /// In a house of its own behind this NAT, with a forwarded port that it announces.
    Forwarded(Nat),
    /// In a house of its own behind this NAT for IPv4, and with IPv6 behind a firewall.
    Ipv6(Nat),
    /// In a house of its own behind an ordinary router, and that behind a NAT of its provider.
    Carrier(Nat),
    /// In a house of its own behind an ordinary router, and both houses behind one NAT of their provider.
    OneCarrier(Nat),
}

use Nat::{AddressDependent, EndpointIndependent, Hairpin, PortDependent, Symmetric, UdpBlocked};
use Place::{Behind, Carrier, Forwarded, Home, House, Ipv6, OneCarrier, Public};

#[derive(Debug, Clone, Copy, PartialEq)]
enum Relay {
    Without,
    /// A third node on the internet runs it, and made the invite of both.
    With,
}

use Relay::{With, Without};

#[derive(Debug, Clone, Copy, PartialEq)]
enum Path {
    Direct,
    Relayed,
    None,
}

/// What lies between two nodes, and how they reach each other.
struct Row {
    name: &'static str,
    /// The node that invites where there is no relay, and the one that joins.
    places: [Place; 2],
    relay: Relay,
    path: Path,
    /// What a user can do about it.
    advice: &'static str,
}

const NOTHING: &str = "nothing";
const OPEN_ONE: &str =
    "for a direct path, forward a UDP port to either node and announce it (`external_addrs`)";
const OPEN_UDP: &str = "for a direct path, let UDP out of that network";

const fn row(name: &'static str, places: [Place; 2], relay: Relay, path: Path, advice: &'static str) -> Row {
    Row { name, places, relay, path, advice }
}

#[rustfmt::skip]
const ROWS: &[Row] = &[
    row("both in one network without a router", [Home, Home], Without, Path::Direct, NOTHING),
    row("both on the internet", [Public, Public], Without, Path::Direct, NOTHING),
    row("a forwarded port", [Forwarded(PortDependent), Behind(PortDependent)], Without, Path::Direct, "forward the UDP port of `bind_port` and announce it (`external_addrs`)"),
    row("nothing forwarded, no relay", [Behind(PortDependent), Behind(PortDependent)], Without, Path::None, "let a node that all reach run a relay (`[relay] enabled = true`), or forward a UDP port"),
    row("both in one house behind one router", [House(PortDependent), House(PortDependent)], With, Path::Direct, NOTHING),
    row("routers open to all", [Behind(EndpointIndependent), Behind(EndpointIndependent)], With, Path::Direct, NOTHING),
    row("routers open to whom was sent to", [Behind(AddressDependent), Behind(AddressDependent)], With, Path::Direct, NOTHING),
    row("ordinary routers", [Behind(PortDependent), Behind(PortDependent)], With, Path::Direct, NOTHING),
    row("a new port for each peer at one end, the other on the internet", [Behind(Symmetric), Public], With, Path::Direct, NOTHING),
    row("a new port for each peer at one end, the other open to all", [Behind(Symmetric), Behind(EndpointIndependent)], With, Path::Direct, NOTHING),
    row("a new port for each peer at one end, an ordinary router at the other", [Behind(Symmetric), Behind(PortDependent)], With, Path::Relayed, OPEN_ONE),
    row("a new port for each peer at both ends", [Behind(Symmetric), Behind(Symmetric)], With, Path::Relayed, OPEN_ONE),
    row("a provider's NAT that is open to all", [Carrier(EndpointIndependent), Behind(PortDependent)], With, Path::Direct, NOTHING),
    row("a provider's NAT with a new port for each peer", [Carrier(Symmetric), Behind(PortDependent)], With, Path::Relayed, "for a direct path, forward a UDP port to the node behind the router of its own"),
    row("both behind one provider's NAT that leads back inside", [OneCarrier(Hairpin), OneCarrier(Hairpin)], With, Path::Direct, NOTHING),
    row("both behind one provider's NAT that does not lead back inside", [OneCarrier(PortDependent), OneCarrier(PortDependent)], With, Path::Relayed, "for a direct path, use IPv6 if the provider has it"),
    row("a new port for each peer at both ends, and IPv6 behind firewalls", [Ipv6(Symmetric), Ipv6(Symmetric)], With, Path::Direct, NOTHING),
    row("no UDP at one end", [Public, Behind(UdpBlocked)], With, Path::Relayed, OPEN_UDP),
    row("no UDP at either end", [Behind(UdpBlocked), Behind(UdpBlocked)], With, Path::Relayed, OPEN_UDP),
];

/// The UDP port that is forwarded.
const PORT: u16 = 4433;
/// So many pings are given to a relayed link to become a direct one: two seconds.
const PINGS: u32 = 10;

#[test]
fn nodes_reach_each_other_by_the_way_that_lies_open() {
    let mut wrong = Vec::new();
    for row in ROWS {
        let Some((mut lab, programs)) = mesh::lab() else { return };
        let begin = Instant::now();
        let found = try_row(&mut lab, &programs, row);
        println!("{}: {found:?} after {:.1} s", row.name, begin.elapsed().as_secs_f32());
        if found != row.path {
            wrong.push(format!("{}: {found:?}, not {:?}", row.name, row.path));
        }
    }
    assert!(wrong.is_empty(), "{} rows are not as expected:\n{}", wrong.len(), wrong.join("\n"));
}

/// The page that users read says what the test above finds. `QMT_WRITE_DOCS=1` writes it.
#[test]
fn the_page_of_paths_shows_these_rows() {
    const BEGIN: &str = "<!-- written by the test that finds it: tests/tests/netns/paths.rs -->\n";
    const END: &str = "<!-- end -->\n";
    let page = FilePath::new(env!("CARGO_MANIFEST_DIR")).join("../docs/nat.md");
    let text = std::fs::read_to_string(&page).unwrap();
    let (before, rest) = text.split_once(BEGIN).unwrap();
    let (_, after) = rest.split_once(END).unwrap();
    let wanted = format!("{before}{BEGIN}{}{END}{after}", table());
    if std::env::var_os("QMT_WRITE_DOCS").is_some() {
        std::fs::write(&page, wanted).unwrap();
    } else {
        assert_eq!(text, wanted, "run this test with QMT_WRITE_DOCS=1");
    }
}

fn table() -> String {
    let mut table = "| what lies between | relay | path | to do |\n|---|---|---|---|\n".to_owned();
    for Row { name, relay, path, advice, .. } in ROWS {
        let relay = if *relay == With { "yes" } else { "none" };
        let path = match path {
            Path::Direct => "direct",
            Path::Relayed => "relayed",
            Path::None => "none",
        };
        writeln!(table, "| {name} | {relay} | {path} | {advice} |").unwrap();
    }
    table
}

fn try_row(lab: &mut Lab, programs: &Programs, row: &Row) -> Path {
    let mut ground = Ground { wan: lab.wan(), shared: None };
    let relay = (row.relay == With).then(|| {
        let host = lab.host(&ground.wan);
        Node::start(programs, &host, "relay", "relay.enabled = true\n")
    });
    let [(a_host, a_more), (b_host, b_more)] = row.places.map(|place| settle(lab, &mut ground, place));
    let a = Node::start(programs, &a_host, "a", &a_more);
    let b = Node::start(programs, &b_host, "b", &b_more);
    let joined = match &relay {
        Some(relay) => {
            let token = relay.invite(2);
            a.join(&token).and_then(|()| b.join(&token))
        }
        None => b.join(&a.invite(1)),
    };
    if let Err(reason) = joined {
        println!("cannot join: {reason}");
        return Path::None;
    }
    a.sees(&b, "alive");
    b.sees(&a, "alive");
    way(&a, &b, row.path)
}

/// By which way pings go in the end.
fn way(a: &Node, b: &Node, expected: Path) -> Path {
    if mesh::seen(mesh::PATIENCE, || a.ping(b, 1).ok()).is_none() {
        println!("alive, but not reached: {:?}; {}", a.ping(b, 1), a.ask(&["nodes"]).unwrap());
        return Path::None;
    }
    let last = || a.ping(b, PINGS).ok()?.pop();
    let found = if expected == Path::Direct {
        mesh::seen(mesh::PATIENCE, || last().filter(|path| path == "direct")).or_else(last)
    } else {
        Some(until("a answers pings in a row", last))
    };
    match found.as_deref() {
        Some("direct") => Path::Direct,
        Some("relayed") => Path::Relayed,
        Some("none") | None => Path::None,
        Some(other) => panic!("an unknown path: {other}"),
    }
}

/// The networks that the nodes of a row share.
struct Ground {
    wan: Lan,
    /// The house of both, or the network of their provider.
    shared: Option<Lan>,
}

/// A host in its place, and what its node's configuration says of that.
fn settle(lab: &mut Lab, ground: &mut Ground, place: Place) -> (Host, String) {
    let wan = ground.wan;
    let mut more = String::new();
    let house = |lab: &mut Lab, outside: &Lan, nat| {
        let inside = lab.lan();
        let router = lab.router(outside, &inside, nat);
        (lab.host(&inside), router)
    };
    let host = match place {
        Public => lab.host(&wan),
        Home => {
            let home = *ground.shared.get_or_insert_with(|| lab.lan());
            lab.host(&home)
        }
        House(nat) => {
            let home = *ground.shared.get_or_insert_with(|| {
                let home = lab.lan();
                lab.router(&wan, &home, nat);
                home
            });
            lab.host(&home)
        }
        Behind(nat) => house(lab, &wan, nat).0,
        Forwarded(nat) => {
            let (host, router) = house(lab, &wan, nat);
            router.forward(PORT, &host);
            let outside = router.address();
            writeln!(more, "mesh.external_addrs = [\"/ip4/{outside}/udp/{PORT}/quic-v1\"]").unwrap();
            writeln!(more, "mesh.internet.bind_port = {PORT}").unwrap();
            host
        }
        Ipv6(nat) => {
            let (host, router) = house(lab, &wan, nat);
            lab.ipv6(&router, &host);
            host
        }
        Carrier(nat) => {
            let carrier = lab.carrier();
            lab.router(&wan, &carrier, nat);
            house(lab, &carrier, PortDependent).0
        }
        OneCarrier(nat) => {
            let carrier = *ground.shared.get_or_insert_with(|| {
                let carrier = lab.carrier();
                lab.router(&wan, &carrier, nat);
                carrier
            });
            house(lab, &carrier, PortDependent).0
        }
    };
    (host, more)
}
