//! By which way two nodes reach each other, for what lies between them.

use std::fmt::Write;
use std::time::Instant;

use qmt_tests::lab::{Host, Lab, Lan, Nat};

use crate::mesh::{self, Node, Programs, until};

/// Where a node is.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Place {
    /// On the internet, with a public address.
    Public,
    /// In the one house that both nodes of the row are in.
    Home,
    /// In a house of its own behind this NAT.
    Behind(Nat),
    /// In a house of its own behind this NAT, with a forwarded port that it announces.
    Forwarded(Nat),
    /// In a house of its own behind this NAT, and that behind one of the provider.
    Carrier(Nat, Nat),
}

use Nat::{AddressDependent, EndpointIndependent, PortDependent, Symmetric, UdpBlocked};
use Place::{Behind, Carrier, Forwarded, Home, Public};

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

/// One row: the node that invites where there is no relay, the one that joins, the relay, and how they reach each other.
type Row = (&'static str, Place, Place, Relay, Path);

#[rustfmt::skip]
const ROWS: &[Row] = &[
    ("both in one house",           Home,                     Home,                            Without, Path::Direct),
    ("both on the internet",        Public,                   Public,                          Without, Path::Direct),
    ("a forwarded port",            Forwarded(PortDependent), Behind(PortDependent),           Without, Path::Direct),
    ("nothing forwarded, no relay", Behind(PortDependent),    Behind(PortDependent),           Without, Path::None),
    ("routers open to all",         Behind(EndpointIndependent), Behind(EndpointIndependent),  With,    Path::Relayed),
    ("routers open to the asked",   Behind(AddressDependent), Behind(AddressDependent),        With,    Path::Relayed),
    ("ordinary routers",            Behind(PortDependent),    Behind(PortDependent),           With,    Path::Relayed),
    ("a new port for each peer",    Behind(Symmetric),        Behind(Symmetric),               With,    Path::Relayed),
    ("a provider's NAT",            Behind(PortDependent),    Carrier(Symmetric, PortDependent), With,  Path::Relayed),
    ("no UDP at one end",           Public,                   Behind(UdpBlocked),              With,    Path::Relayed),
    ("no UDP at either end",        Behind(UdpBlocked),       Behind(UdpBlocked),              With,    Path::Relayed),
];

/// The UDP port that is forwarded.
const PORT: u16 = 4433;
/// So many pings are given to a relayed link to become a direct one: two seconds.
const PINGS: u32 = 10;

#[test]
fn nodes_reach_each_other_by_the_way_that_lies_open() {
    let mut table = format!(
        "{:27} {:29} {:34} {:7} {:8} {}\n",
        "what lies between", "first node", "second node", "relay", "expected", "found"
    );
    let mut wrong = 0;
    for row in ROWS {
        let Some((mut lab, programs)) = mesh::lab() else { return };
        let (name, a, b, relay, expected) = *row;
        let begin = Instant::now();
        let found = try_row(&mut lab, &programs, row);
        println!("{name}: {found:?} after {:.1} s", begin.elapsed().as_secs_f32());
        let mark = if found == expected { "" } else { " <- expected otherwise" };
        wrong += usize::from(found != expected);
        let [a, b, relay, expected, found] = [
            format!("{a:?}"),
            format!("{b:?}"),
            format!("{relay:?}"),
            format!("{expected:?}"),
            format!("{found:?}"),
        ];
        writeln!(table, "{name:27} {a:29} {b:34} {relay:7} {expected:8} {found}{mark}").unwrap();
    }
    println!("{table}");
    assert_eq!(wrong, 0, "{wrong} rows are not as expected:\n{table}");
}

fn try_row(lab: &mut Lab, programs: &Programs, &(_, a, b, relay, expected): &Row) -> Path {
    let wan = lab.wan();
    let relay = (relay == With).then(|| {
        let host = lab.host(&wan);
        Node::start(programs, &host, "relay", "relay.enabled = true\n")
    });
    let home = lab.lan();
    let (a_host, a_more) = settle(lab, &wan, &home, a);
    let (b_host, b_more) = settle(lab, &wan, &home, b);
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
    way(&a, &b, expected)
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

/// A host in its place, and what its node's configuration says of that.
fn settle(lab: &mut Lab, wan: &Lan, home: &Lan, place: Place) -> (Host, String) {
    let inside = lab.lan();
    let mut more = String::new();
    let host = match place {
        Public => lab.host(wan),
        Home => lab.host(home),
        Behind(nat) => {
            lab.router(wan, &inside, nat);
            lab.host(&inside)
        }
        Forwarded(nat) => {
            let router = lab.router(wan, &inside, nat);
            let host = lab.host(&inside);
            router.forward(PORT, &host);
            let outside = router.address();
            writeln!(more, "mesh.external_addrs = [\"/ip4/{outside}/udp/{PORT}/quic-v1\"]").unwrap();
            writeln!(more, "mesh.internet.bind_port = {PORT}").unwrap();
            host
        }
        Carrier(providers, own) => {
            let carrier = lab.carrier();
            lab.router(wan, &carrier, providers);
            lab.router(&carrier, &inside, own);
            lab.host(&inside)
        }
    };
    (host, more)
}
