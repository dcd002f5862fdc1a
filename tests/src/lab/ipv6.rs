//! IPv6 beside IPv4, as homes have it: each host with a public address of its own, and a firewall in the router.

use std::net::Ipv6Addr;

use super::{Host, Lab, Router, rules, tool};

/// All IPv6 addresses of labs: those for documentation (RFC 3849).
const ALL: &str = "2001:db8::/48";

impl Lab {
    /// Gives a host in a house, and its router, IPv6: no NAT, and nothing comes in that was not asked for.
    pub fn ipv6(&self, router: &Router, host: &Host) {
        let outside = router.uplink().namespace();
        let inside = host.plug().namespace();
        let at = |last| house(host, last);
        for setting in [
            "net.ipv6.conf.all.forwarding=1",
            &format!("net.ipv6.conf.{}.proxy_ndp=1", rules::OUTSIDE),
            &format!("net.ipv6.neigh.{}.proxy_delay=0", rules::OUTSIDE),
        ] {
            tool::run("ip", &["netns", "exec", outside, "sysctl", "-qw", setting]);
        }
        let address = |last| format!("{}/64", at(last));
        tool::ip(outside, &["-6", "addr", "add", &address(1), "dev", rules::INSIDE, "nodad"]);
        tool::ip(inside, &["-6", "addr", "add", &address(2), "dev", "eth0", "nodad"]);
        tool::ip(inside, &["-6", "route", "add", "default", "via", &at(1).to_string()]);
        // All of the outside is one link, on which each router answers for its own host.
        tool::ip(outside, &["-6", "route", "add", ALL, "dev", rules::OUTSIDE]);
        tool::ip(outside, &["-6", "neigh", "add", "proxy", &at(2).to_string(), "dev", rules::OUTSIDE]);
        tool::nft(outside, &rules::firewall6());
    }
}

/// An address of the house whose network has this host's number.
fn house(host: &Host, last: u16) -> Ipv6Addr {
    let [_, _, number, _] = host.address().octets();
    Ipv6Addr::new(0x2001, 0xdb8, 0, u16::from(number) + 1, 0, 0, 0, last)
}
