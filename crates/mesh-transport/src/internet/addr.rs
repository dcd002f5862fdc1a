//! Our own addresses, best first, and as few as fit.

use std::net::{IpAddr, SocketAddr};

use mesh_identity::{DIRECT_ADDRS_MAX, NodeAddr};

/// Sorts addresses by how likely others can dial them: loopback only if there is nothing else.
pub(crate) fn best_first(addrs: impl IntoIterator<Item = SocketAddr>) -> Vec<SocketAddr> {
    let mut addrs: Vec<_> =
        addrs.into_iter().filter(|addr| !addr.ip().is_unspecified() && addr.port() != 0).collect();
    if addrs.iter().any(|addr| !addr.ip().is_loopback()) {
        addrs.retain(|addr| !addr.ip().is_loopback());
    }
    addrs.sort_by_key(|addr| (rank(addr.ip()), *addr));
    addrs.dedup();
    addrs.truncate(DIRECT_ADDRS_MAX);
    addrs
}

fn rank(ip: IpAddr) -> u8 {
    match ip {
        IpAddr::V4(v4) if v4.is_loopback() || v4.is_link_local() => 3,
        IpAddr::V4(v4) if v4.is_private() => 1,
        IpAddr::V4(_) => 0,
        IpAddr::V6(v6) if v6.is_loopback() || v6.is_unicast_link_local() => 4,
        IpAddr::V6(_) => 2,
    }
}

/// The best of an address that fits into `bytes_max` when written into an invite: the relay first (it reaches a node
/// behind any NAT), then direct addresses in their order.
pub fn compact(addr: &NodeAddr, bytes_max: usize) -> NodeAddr {
    let fits = |addr: &NodeAddr| addr.encode().is_ok_and(|bytes| bytes.len() <= bytes_max);
    let mut chosen = NodeAddr { direct: Vec::new(), relay: addr.relay.clone(), ..NodeAddr::default() };
    if !fits(&chosen) {
        chosen.relay = None;
    }
    for direct in &addr.direct {
        chosen.direct.push(*direct);
        if !fits(&chosen) {
            chosen.direct.pop();
        }
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addrs(texts: &[&str]) -> Vec<SocketAddr> {
        texts.iter().map(|text| text.parse().expect("an address")).collect()
    }

    #[test]
    fn names_loopback_only_if_there_is_nothing_else() {
        assert_eq!(best_first(addrs(&["127.0.0.1:9", "0.0.0.0:9"])), addrs(&["127.0.0.1:9"]));
        let all = addrs(&[
            "127.0.0.1:9",
            "[fe80::1]:9",
            "[2001:db8::1]:9",
            "10.0.0.1:9",
            "203.0.113.5:9",
            "10.0.0.1:9",
        ]);
        let wanted = addrs(&["203.0.113.5:9", "10.0.0.1:9", "[2001:db8::1]:9", "[fe80::1]:9"]);
        assert_eq!(best_first(all), wanted);
    }

    #[test]
    fn hints_fit_their_room() {
        let direct =
            addrs(&["203.0.113.5:9", "10.0.0.1:9", "10.0.0.2:9", "10.0.0.3:9", "10.0.0.4:9", "10.0.0.5:9"]);
        let plain = NodeAddr { direct: direct.clone(), relay: None, ..NodeAddr::default() };
        let chosen = compact(&plain, 30);
        assert_eq!(chosen.direct, direct[..4]);
        assert!(chosen.encode().expect("encodes").len() <= 30);
        let relayed = NodeAddr {
            direct: direct.clone(),
            relay: Some("https://relay.example.org".into()),
            ..NodeAddr::default()
        };
        let chosen = compact(&relayed, 30);
        assert_eq!(chosen.relay, relayed.relay);
        assert!(chosen.encode().expect("encodes").len() <= 30);
        let long = NodeAddr {
            direct,
            relay: Some(format!("https://{}.example.org", "r".repeat(60))),
            ..NodeAddr::default()
        };
        assert_eq!(compact(&long, 30).relay, None);
        assert_eq!(compact(&long, 30).direct.len(), 4);
    }
}
