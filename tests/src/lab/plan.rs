//! Which addresses a network has.

use std::net::Ipv4Addr;

/// What kind of network it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Zone {
    /// Public, as far as the nodes can tell. The range is the one for tests of network devices (RFC 2544), so that
    /// nothing of a real network is meant even by mistake.
    Internet,
    /// The shared addresses of a provider (RFC 6598).
    Carrier,
    /// Private (RFC 1918).
    House,
}

/// 254 addresses of which the first is the gateway's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Subnet([u8; 3]);

impl Subnet {
    /// The network of a number that no other network of the lab has.
    ///
    /// # Panics
    /// When the number is over 255.
    pub(super) fn new(zone: Zone, number: usize) -> Self {
        let number = u8::try_from(number).expect("a lab has at most 256 networks");
        Self(match zone {
            Zone::Internet => [198, 18, number],
            Zone::Carrier => [100, 64, number],
            Zone::House => [192, 168, number],
        })
    }

    pub(super) fn gateway(&self) -> Ipv4Addr {
        self.address(1)
    }

    /// The address of its nth host, counted from 1.
    ///
    /// # Panics
    /// When the network is full.
    pub(super) fn host(&self, number: u8) -> Ipv4Addr {
        assert!((1..=253).contains(&number), "the network {self:?} has 253 addresses for hosts");
        self.address(number + 1)
    }

    /// As `ip addr add` takes it.
    pub(super) fn with_length(&self, address: Ipv4Addr) -> String {
        format!("{address}/24")
    }

    fn address(&self, last: u8) -> Ipv4Addr {
        let [a, b, c] = self.0;
        Ipv4Addr::new(a, b, c, last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_of_all_kinds_have_addresses_of_their_own() {
        let addresses = [Zone::Internet, Zone::Carrier, Zone::House].map(|zone| Subnet::new(zone, 7).host(1));
        assert_eq!(addresses.map(|address| address.to_string()), ["198.18.7.2", "100.64.7.2", "192.168.7.2"]);
        assert_eq!(addresses.map(|address| address.is_private()), [false, false, true]);
        assert_ne!(Subnet::new(Zone::House, 1), Subnet::new(Zone::House, 2));
    }

    #[test]
    fn the_gateway_is_no_hosts_address() {
        let subnet = Subnet::new(Zone::House, 0);
        assert_eq!(subnet.with_length(subnet.gateway()), "192.168.0.1/24");
        assert_eq!(subnet.host(253).to_string(), "192.168.0.254");
    }

    #[test]
    #[should_panic(expected = "253 addresses")]
    fn a_full_network_gives_no_address() {
        Subnet::new(Zone::House, 0).host(254);
    }
}
