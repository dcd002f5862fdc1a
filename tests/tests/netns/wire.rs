//! The wire with delay, jitter and loss.

use std::net::{Ipv4Addr, UdpSocket};
use std::time::{Duration, Instant};

use qmt_tests::lab::{Host, Lab, Wire, Wired};

use crate::mesh::{PATIENCE, empty_lab, until};

const PORT: u16 = 7000;

/// Two hosts without any other way to each other.
fn wired(wire: Wire) -> Option<(Lab, [Host; 2], Wired)> {
    let mut lab = empty_lab()?;
    if let Err(reason) = lab.check_wire() {
        println!("skipped: {reason}");
        return None;
    }
    let (here, there) = (lab.lan(), lab.lan());
    let hosts = [lab.host(&here), lab.host(&there)];
    let wired = lab.wire(&hosts[0], &hosts[1], wire);
    Some((lab, hosts, wired))
}

fn sockets(hosts: &[Host; 2]) -> [UdpSocket; 2] {
    hosts.each_ref().map(|host| {
        let socket = host.inside(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, PORT))).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket
    })
}

/// The numbers that arrive of so many that are sent, in the order in which they do.
fn arriving(wire: Wire, count: u16) -> Option<Vec<u16>> {
    /// So many small packets fit into a socket's buffer, whatever the system's default.
    const BURST: u16 = 50;
    let (_lab, hosts, wired) = wired(wire)?;
    let [near, far] = sockets(&hosts);
    far.set_nonblocking(true).unwrap();
    let mut arrived = Vec::new();
    for first in (0..count).step_by(usize::from(BURST)) {
        for number in first..count.min(first + BURST) {
            near.send_to(&number.to_be_bytes(), (wired.addresses()[1], PORT)).unwrap();
        }
        let sent = u64::from(count.min(first + BURST));
        until("each packet has arrived or is lost", || {
            (wired.carried()[0] + wired.lost()[0] == sent).then_some(())
        });
        let mut number = [0; 2];
        while far.recv(&mut number).is_ok() {
            arrived.push(u16::from_be_bytes(number));
        }
    }
    assert_eq!(arrived.len() as u64, wired.carried()[0], "the wire counts what arrives");
    Some(arrived)
}

#[test]
fn a_round_trip_takes_the_delay_twice() {
    let delay = Duration::from_millis(30);
    let Some((_lab, hosts, wired)) = wired(Wire { delay, ..Wire::default() }) else { return };
    let [near, far] = sockets(&hosts);
    let mut shortest = PATIENCE;
    for _ in 0..20 {
        let begin = Instant::now();
        near.send_to(b"ping", (wired.addresses()[1], PORT)).unwrap();
        let (_, from) = far.recv_from(&mut [0; 8]).unwrap();
        assert!(begin.elapsed() >= delay, "there after {:?}", begin.elapsed());
        far.send_to(b"pong", from).unwrap();
        near.recv(&mut [0; 8]).unwrap();
        assert!(begin.elapsed() >= 2 * delay, "back after {:?}", begin.elapsed());
        shortest = shortest.min(begin.elapsed());
    }
    // Of 20, one at least was held up by nothing else.
    assert!(shortest < 3 * delay, "{shortest:?}");
    until("all are counted", || (wired.carried() == [20, 20]).then_some(()));
    assert_eq!(wired.lost(), [0, 0]);
}

#[test]
fn without_jitter_all_arrives_in_order() {
    let delay = Duration::from_millis(5);
    let Some(arrived) = arriving(Wire { delay, ..Wire::default() }, 500) else { return };
    assert_eq!(arrived, (0..500).collect::<Vec<_>>());
}

#[test]
fn with_jitter_packets_overtake_each_other_and_none_is_lost() {
    let wire = Wire { jitter: Duration::from_millis(50), ..Wire::default() };
    let Some(mut arrived) = arriving(wire, 500) else { return };
    assert!(!arrived.is_sorted());
    arrived.sort_unstable();
    assert_eq!(arrived, (0..500).collect::<Vec<_>>());
}

#[test]
fn a_seed_says_which_packets_are_lost() {
    let wire = Wire { loss_per_mille: 200, seed: 7, ..Wire::default() };
    let Some(arrived) = arriving(wire, 2000) else { return };
    let Some(again) = arriving(wire, 2000) else { return };
    let Some(other) = arriving(Wire { seed: 8, ..wire }, 2000) else { return };
    assert!((1500..=1700).contains(&arrived.len()), "{} of 2000 arrived", arrived.len());
    assert_eq!(arrived, again);
    assert_ne!(arrived, other);
}

#[test]
fn a_dropped_wire_is_gone_with_its_devices() {
    let Some((_lab, hosts, wired)) = wired(Wire::default()) else { return };
    let has_wire = |host: &Host| {
        let links = host.run("ip", &["-o", "link"]).stdout;
        String::from_utf8_lossy(&links).contains("wire0")
    };
    assert!(hosts.iter().all(has_wire));
    drop(wired);
    assert!(!hosts.iter().any(has_wire));
}
