//! Nodes that discovery has named: claims of strangers, so few and short.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use mesh_identity::{DIRECT_ADDRS_MAX, NodeAddr, NodeId};

use crate::connection::Found;

/// Nodes remembered at once. A network with more of them has other ways to find nodes than multicast.
const NODES_MAX: usize = 1024;

/// What was found, by node. When it is full, the node found longest ago makes room: a flood of invented ones costs
/// this table and nothing else, and whoever is really there announces itself again.
#[derive(Debug, Default)]
pub(super) struct Table {
    nodes: BTreeMap<NodeId, Entry>,
    /// Grows with each new node.
    next: u64,
}

#[derive(Debug, Default)]
struct Entry {
    addrs: Vec<SocketAddr>,
    /// From the configuration: never forgotten, and first.
    fixed: Vec<SocketAddr>,
    /// Behind the hole that was punched last.
    punched: Option<SocketAddr>,
    since: u64,
}

impl Entry {
    fn told(&self, node: NodeId) -> Found {
        let mut lan: Vec<SocketAddr> = Vec::new();
        for addr in self.punched.iter().chain(&self.fixed).chain(&self.addrs) {
            if !lan.contains(addr) && lan.len() < DIRECT_ADDRS_MAX {
                lan.push(*addr);
            }
        }
        Found { node, addr: NodeAddr { lan, ..NodeAddr::default() } }
    }
}

impl Table {
    /// Notes that the node is said to be there; what is to be told of it, and of the node that made room.
    pub(super) fn seen(&mut self, node: NodeId, addr: SocketAddr) -> Vec<Found> {
        if !is_plausible(addr) {
            return Vec::new();
        }
        let (entry, mut told) = self.entry(node);
        if entry.addrs.contains(&addr) || entry.addrs.len() >= DIRECT_ADDRS_MAX {
            return told;
        }
        entry.addrs.push(addr);
        told.push(entry.told(node));
        told
    }

    /// Notes that a hole was punched to the node there, in place of an earlier one.
    pub(super) fn punched(&mut self, node: NodeId, addr: SocketAddr) -> Vec<Found> {
        if !is_plausible(addr) {
            return Vec::new();
        }
        let (entry, mut told) = self.entry(node);
        if entry.punched.replace(addr) != Some(addr) {
            told.push(entry.told(node));
        }
        told
    }

    /// Where the configuration says that the node is.
    pub(super) fn fixed(&self, node: &NodeId) -> &[SocketAddr] {
        self.nodes.get(node).map_or(&[], |entry| &entry.fixed)
    }

    /// The node's entry, and what is to be told of the node that made room for it.
    fn entry(&mut self, node: NodeId) -> (&mut Entry, Vec<Found>) {
        let full = !self.nodes.contains_key(&node) && self.nodes.len() >= NODES_MAX;
        let told = if full { self.make_room() } else { None };
        let since = self.next;
        self.next += 1;
        let entry = self.nodes.entry(node).or_insert_with(|| Entry { since, ..Entry::default() });
        (entry, told.into_iter().collect())
    }

    /// Notes that it is no longer said to be there.
    pub(super) fn gone(&mut self, node: NodeId, addr: SocketAddr) -> Option<Found> {
        let entry = self.nodes.get_mut(&node)?;
        let before = entry.addrs.len();
        entry.addrs.retain(|known| *known != addr);
        if entry.addrs.len() == before {
            return None;
        }
        let told = entry.told(node);
        if told.addr.is_empty() {
            self.nodes.remove(&node);
        }
        Some(told)
    }

    /// Notes where the configuration says that the node is, in place of what it said before.
    pub(super) fn fix(&mut self, node: NodeId, addrs: Vec<SocketAddr>) -> Option<Found> {
        let entry = self.nodes.entry(node).or_default();
        if entry.fixed == addrs {
            return None;
        }
        entry.fixed = addrs;
        Some(entry.told(node))
    }

    fn make_room(&mut self) -> Option<Found> {
        let loose = self.nodes.iter().filter(|(_, entry)| entry.fixed.is_empty());
        let oldest = *loose.min_by_key(|(_, entry)| entry.since)?.0;
        self.nodes.remove(&oldest);
        Some(Entry::default().told(oldest))
    }
}

/// Whether another machine of the network can be there.
pub(super) fn is_plausible(addr: SocketAddr) -> bool {
    let ip = addr.ip();
    let broadcast = matches!(ip, IpAddr::V4(v4) if v4.is_broadcast());
    addr.port() != 0 && !(ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() || broadcast)
}

#[cfg(test)]
mod tests {
    use mesh_identity::NodeKey;

    use super::*;

    fn node(number: u32) -> NodeId {
        let mut seed = [3; 32];
        seed[..4].copy_from_slice(&number.to_be_bytes());
        NodeKey::from_seed(seed).node_id()
    }

    fn found(node: NodeId, addrs: &[SocketAddr]) -> Found {
        Found { node, addr: NodeAddr { lan: addrs.to_vec(), ..NodeAddr::default() } }
    }

    fn addr(text: &str) -> SocketAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn tells_every_change_and_nothing_else() {
        let mut table = Table::default();
        let (one, two) = (addr("192.168.1.2:9"), addr("192.168.1.3:9"));
        assert_eq!(table.seen(node(1), one), [found(node(1), &[one])]);
        assert_eq!(table.seen(node(1), one), []);
        assert_eq!(table.seen(node(1), two), [found(node(1), &[one, two])]);
        assert_eq!(table.gone(node(1), addr("192.168.1.4:9")), None);
        assert_eq!(table.gone(node(1), one), Some(found(node(1), &[two])));
        assert_eq!(table.gone(node(1), two), Some(found(node(1), &[])));
        assert_eq!(table.gone(node(1), two), None);
    }

    #[test]
    fn addresses_where_nobody_else_can_be_are_not_taken() {
        for text in
            ["127.0.0.1:9", "0.0.0.0:9", "224.0.0.251:9", "255.255.255.255:9", "192.168.1.2:0", "[::1]:9"]
        {
            assert_eq!(Table::default().seen(node(1), addr(text)), [], "{text}");
        }
    }

    #[test]
    fn a_flood_costs_a_table_and_the_present_come_back() {
        let mut table = Table::default();
        let real = addr("192.168.1.2:9");
        table.seen(node(0), real);
        for number in 1..3000 {
            table.seen(node(number), addr("192.168.1.3:9"));
        }
        assert_eq!(table.nodes.len(), NODES_MAX);
        let told = table.seen(node(0), real);
        assert_eq!(told.last(), Some(&found(node(0), &[real])));
        for port in 1..100 {
            table.seen(node(0), (real.ip(), port).into());
        }
        assert_eq!(table.nodes[&node(0)].addrs.len(), DIRECT_ADDRS_MAX);
    }

    #[test]
    fn the_last_hole_comes_first_and_there_is_one() {
        let mut table = Table::default();
        let (heard, one, two) = (addr("192.168.1.2:9"), addr("198.18.0.1:1"), addr("198.18.0.1:2"));
        table.seen(node(1), heard);
        assert_eq!(table.punched(node(1), one), [found(node(1), &[one, heard])]);
        assert_eq!(table.punched(node(1), one), []);
        assert_eq!(table.punched(node(1), two), [found(node(1), &[two, heard])]);
        assert_eq!(table.punched(node(1), addr("127.0.0.1:1")), []);
        assert_eq!(table.punched(node(2), one), [found(node(2), &[one])]);
    }

    #[test]
    fn what_the_configuration_says_stays_and_comes_first() {
        let mut table = Table::default();
        let (fixed, heard) = (addr("192.168.1.2:9"), addr("192.168.1.3:9"));
        assert_eq!(table.fix(node(0), vec![fixed]), Some(found(node(0), &[fixed])));
        assert_eq!(table.fix(node(0), vec![fixed]), None);
        assert_eq!(table.seen(node(0), heard), [found(node(0), &[fixed, heard])]);
        for number in 1..3000 {
            table.seen(node(number), heard);
        }
        assert_eq!(table.gone(node(0), heard), Some(found(node(0), &[fixed])));
    }
}
