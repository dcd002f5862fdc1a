//! The laboratory itself: what it builds does what it says, and nothing stays behind.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::Command;

use qmt_tests::lab::{Cut, Host, Lab, Nat};

use crate::mesh::{PATIENCE, empty_lab, until};

fn socket(host: &Host, port: u16) -> UdpSocket {
    let address = SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
    let socket = host.inside(|| UdpSocket::bind(address)).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

fn receive(socket: &UdpSocket) -> (String, SocketAddr) {
    let mut bytes = [0; 64];
    let (length, from) = socket.recv_from(&mut bytes).unwrap();
    (String::from_utf8(bytes[..length].to_vec()).unwrap(), from)
}

/// All that arrives up to the last message, which comes by a way that is open.
fn receive_until(socket: &UdpSocket, last: &str) -> Vec<String> {
    let mut all = Vec::new();
    loop {
        match receive(socket).0 {
            one if one == last => return all,
            one => all.push(one),
        }
    }
}

/// What a NAT does, as its rules must show it.
#[derive(Debug, PartialEq)]
struct Behaviour {
    /// Two peers see the same address and port.
    one_port_for_all: bool,
    /// Who gets in beside the one that was asked.
    lets_in: Vec<String>,
}

fn behaviour(lab: &mut Lab, nat: Nat) -> Behaviour {
    let (wan, home) = (lab.wan(), lab.lan());
    let router = lab.router(&wan, &home, nat);
    let (asked, stranger, host) = (lab.host(&wan), lab.host(&wan), lab.host(&home));
    let (asked_port, other_port) = (socket(&asked, 1001), socket(&asked, 1002));
    let (strange, inside) = (socket(&stranger, 1003), socket(&host, 5000));
    inside.send_to(b"hello", (asked.address(), 1001)).unwrap();
    let (_, seen) = receive(&asked_port);
    assert_eq!(seen.ip(), IpAddr::V4(router.address()));
    strange.send_to(b"another address", seen).unwrap();
    other_port.send_to(b"another port", seen).unwrap();
    // All pass the same bridge, so that nothing sent before the answer arrives after it.
    asked_port.send_to(b"answer", seen).unwrap();
    let lets_in = receive_until(&inside, "answer");
    inside.send_to(b"hello", (stranger.address(), 1003)).unwrap();
    let (_, seen_by_stranger) = receive(&strange);
    Behaviour { one_port_for_all: seen == seen_by_stranger, lets_in }
}

#[test]
fn each_kind_of_nat_behaves_as_its_name_says() {
    let all = ["another address", "another port"];
    for (nat, one_port_for_all, lets_in) in [
        (Nat::EndpointIndependent, true, &all[..]),
        (Nat::AddressDependent, true, &all[1..]),
        (Nat::PortDependent, true, &[]),
        (Nat::Symmetric, false, &[]),
    ] {
        let Some(mut lab) = empty_lab() else { return };
        let lets_in = lets_in.iter().map(|one| (*one).to_owned()).collect();
        assert_eq!(behaviour(&mut lab, nat), Behaviour { one_port_for_all, lets_in }, "{nat:?}");
    }
}

#[test]
fn where_udp_is_blocked_tcp_still_passes() {
    let Some(mut lab) = empty_lab() else { return };
    let (wan, carrier, home) = (lab.wan(), lab.carrier(), lab.lan());
    lab.router(&wan, &carrier, Nat::UdpBlocked);
    lab.router(&carrier, &home, Nat::PortDependent);
    let (server, host) = (lab.host(&wan), lab.host(&home));
    let listens = server.inside(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, 80))).unwrap();
    let hears = socket(&server, 80);
    socket(&host, 5000).send_to(b"hello", (server.address(), 80)).unwrap();
    let connection = host.inside(|| TcpStream::connect((server.address(), 80))).unwrap();
    let (_, from) = listens.accept().unwrap();
    assert_ne!(from, connection.local_addr().unwrap(), "no router in between");
    hears.set_nonblocking(true).unwrap();
    assert_eq!(hears.recv(&mut [0; 8]).unwrap_err().kind(), ErrorKind::WouldBlock);
}

#[test]
fn only_a_forwarded_port_leads_inside() {
    let Some(mut lab) = empty_lab() else { return };
    let (wan, home) = (lab.wan(), lab.lan());
    let router = lab.router(&wan, &home, Nat::PortDependent);
    let (stranger, host) = (lab.host(&wan), lab.host(&home));
    let (open, shut) = (socket(&host, 4433), socket(&host, 4434));
    router.forward(4433, &host);
    let outside = socket(&stranger, 1000);
    outside.send_to(b"shut", (router.address(), 4434)).unwrap();
    outside.send_to(b"open", (router.address(), 4433)).unwrap();
    let (said, from) = receive(&open);
    assert_eq!((said.as_str(), from.ip()), ("open", IpAddr::V4(stranger.address())));
    open.send_to(b"answer", from).unwrap();
    assert_eq!(receive(&outside), ("answer".to_owned(), SocketAddr::from((router.address(), 4433))));
    shut.set_nonblocking(true).unwrap();
    assert_eq!(shut.recv(&mut [0; 8]).unwrap_err().kind(), ErrorKind::WouldBlock);
}

#[test]
fn faults_of_a_cable_come_and_go() {
    let Some(mut lab) = empty_lab() else { return };
    let lan = lab.lan();
    let (from, to) = (lab.host(&lan), lab.host(&lan));
    let (sender, receiver) = (socket(&from, 1000), socket(&to, 1000));
    let send = |what: &str| assert!(sender.send_to(what.as_bytes(), (to.address(), 1000)).is_ok());
    send("first");
    receive_until(&receiver, "first");
    for end in [&from, &to] {
        end.plug().cut(Cut::Silent);
        send("lost");
        end.plug().mend();
        send("mended");
        assert_eq!(receive_until(&receiver, "mended"), Vec::<String>::new());
    }
    from.plug().lose(500);
    (0..200).for_each(|_| send("perhaps"));
    from.plug().mend();
    send("mended");
    let arrived = receive_until(&receiver, "mended").len();
    assert!((40..160).contains(&arrived), "{arrived} of 200 arrived at 50 % loss");
    from.plug().limit_rate(20);
    let shape = from.run("tc", &["qdisc", "show", "dev", "eth0"]).stdout;
    assert!(String::from_utf8_lossy(&shape).contains("tbf"), "{shape:?}");
}

#[test]
fn a_pulled_cable_is_seen_at_the_host() {
    let Some(mut lab) = empty_lab() else { return };
    let lan = lab.lan();
    let host = lab.host(&lan);
    let has = |flag: &str| {
        let link = host.run("ip", &["-o", "link", "show", "dev", "eth0"]).stdout;
        String::from_utf8_lossy(&link).contains(flag).then_some(())
    };
    host.plug().cut(Cut::Unplugged);
    until("the cable is seen to be out", || has("NO-CARRIER"));
    host.plug().mend();
    until("the cable is seen to be in", || has("LOWER_UP"));
}

fn exists(namespace: &str) -> bool {
    Path::new("/run/netns").join(namespace).exists()
}

#[test]
fn a_lab_goes_with_its_hosts_also_when_its_test_panics() {
    let Some(mut lab) = empty_lab() else { return };
    let lan = lab.lan();
    let host = lab.host(&lan);
    let namespace = host.plug().namespace().to_owned();
    let mut left = host.command("sleep").arg("600").spawn().unwrap();
    assert!(exists(&namespace));
    let ended = catch_unwind(AssertUnwindSafe(move || {
        let _lab = lab;
        panic!("as a test does that fails");
    }));
    assert!(ended.is_err() && !exists(&namespace));
    assert!(!left.wait().unwrap().success());
}

#[test]
fn the_next_lab_deletes_what_a_killed_test_left() {
    if empty_lab().is_none() {
        return;
    }
    let mut gone = Command::new("true").spawn().unwrap();
    gone.wait().unwrap();
    let left = format!("qmtlab-{}-0-host1", gone.id());
    assert!(Command::new("ip").args(["netns", "add", &left]).status().unwrap().success());
    let own = Lab::new().unwrap();
    assert!(!exists(&left));
    drop(own);
}
