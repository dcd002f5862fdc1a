//! The nftables rules of routers and faults, as text.

use std::net::Ipv4Addr;

/// A router's device to the network outside.
pub(super) const OUTSIDE: &str = "wan";
/// A router's device to the network inside.
pub(super) const INSIDE: &str = "lan";

/// How a router changes the addresses of what goes out, and what it lets in (the words are those of RFC 4787).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Nat {
    /// A host's port has one port outside, whoever it talks to, and whoever sends there reaches the host.
    EndpointIndependent,
    /// Like [`Nat::EndpointIndependent`], also for hosts inside that send to its address outside: what RFC 6888 asks of a
    /// provider.
    Hairpin,
    /// The same port outside, and only addresses that the host sent something to reach it.
    AddressDependent,
    /// The same port outside, and only the very address and port that the host sent something to reach it: a Linux router.
    PortDependent,
    /// Another port outside for every address and port that the host talks to, and only these reach it there.
    Symmetric,
    /// Like [`Nat::PortDependent`] for TCP; nothing by UDP leaves the house.
    UdpBlocked,
}

/// All rules of a router.
///
/// What comes from outside unasked is dropped even where the router itself would answer: else the kernel takes a packet that
/// comes too early for a talk of its own, and gives that port to nobody inside. No router at home does so, and no hole
/// could be punched through it.
pub(super) fn router(nat: Nat, outside: Ipv4Addr) -> String {
    let masquerade = match nat {
        Nat::Symmetric => "masquerade fully-random",
        _ => "masquerade",
    };
    let udp = match nat {
        Nat::UdpBlocked => format!("iifname \"{INSIDE}\" meta l4proto udp drop"),
        _ => String::new(),
    };
    let open = match nat {
        Nat::EndpointIndependent | Nat::Hairpin => {
            format!("iifname \"{OUTSIDE}\" meta l4proto udp dnat to udp dport map @holes")
        }
        Nat::AddressDependent => {
            format!("iifname \"{OUTSIDE}\" ip saddr . udp dport @asked dnat to udp dport map @holes")
        }
        Nat::PortDependent | Nat::Symmetric | Nat::UdpBlocked => String::new(),
    };
    let (back_in, back_out) = match nat {
        Nat::Hairpin => (
            format!("iifname \"{INSIDE}\" ip daddr {outside} meta l4proto udp dnat to udp dport map @holes"),
            format!("iifname \"{INSIDE}\" oifname \"{INSIDE}\" ct status dnat snat to {outside}"),
        ),
        _ => Default::default(),
    };
    format!(
        r#"table ip router {{
    map holes {{
        type inet_service : ipv4_addr
        flags dynamic,timeout
        timeout 120s
    }}
    set asked {{
        type ipv4_addr . inet_service
        flags dynamic,timeout
        timeout 120s
    }}
    map forwarded {{
        type inet_proto . inet_service : ipv4_addr
    }}
    chain from_outside {{
        type nat hook prerouting priority -100
        iifname "{OUTSIDE}" dnat to meta l4proto . th dport map @forwarded
        {open}
        {back_in}
    }}
    chain to_outside {{
        type nat hook postrouting priority 100
        oifname "{OUTSIDE}" {masquerade}
        {back_out}
    }}
    chain through {{
        type filter hook forward priority 0
        {udp}
        oifname "{OUTSIDE}" meta l4proto udp update @holes {{ udp sport : ip saddr }}
        oifname "{OUTSIDE}" meta l4proto udp update @asked {{ ip daddr . udp sport }}
        iifname "{OUTSIDE}" ct state new ct status dnat accept
        iifname "{OUTSIDE}" ct state new drop
    }}
    chain to_itself {{
        type filter hook input priority 0
        iifname "{OUTSIDE}" ct state new drop
    }}
}}
"#
    )
}

/// The rules of a router for IPv6: what was not asked for stays outside.
pub(super) fn firewall6() -> String {
    format!(
        r#"table ip6 router {{
    chain through {{
        type filter hook forward priority 0
        iifname "{OUTSIDE}" ct state new drop
    }}
    chain to_itself {{
        type filter hook input priority 0
        iifname "{OUTSIDE}" ct state new drop
    }}
}}
"#
    )
}

/// Lets a port of the router lead to a host inside, for UDP and TCP.
pub(super) fn forward(port: u16, host: Ipv4Addr) -> String {
    format!("add element ip router forwarded {{ udp . {port} : {host}, tcp . {port} : {host} }}\n")
}

/// Drops so many of a thousand packets that come in by a device; replaces what stood there before.
pub(super) fn faults(device: &str, loss_permille: u16) -> String {
    let table = format!("faults_{device}");
    let drop = match loss_permille {
        0 => String::new(),
        1..1000 => format!("numgen random mod 1000 < {loss_permille} drop"),
        _ => "drop".to_owned(),
    };
    format!(
        r#"table netdev {table}
delete table netdev {table}
table netdev {table} {{
    chain arriving {{
        type filter hook ingress device "{device}" priority 0
        {drop}
    }}
}}
"#
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Nat; 6] = [
        Nat::EndpointIndependent,
        Nat::Hairpin,
        Nat::AddressDependent,
        Nat::PortDependent,
        Nat::Symmetric,
        Nat::UdpBlocked,
    ];

    fn which(has: &str) -> Vec<Nat> {
        ALL.into_iter().filter(|nat| router(*nat, Ipv4Addr::LOCALHOST).contains(has)).collect()
    }

    #[test]
    fn each_kind_of_nat_differs_by_its_own_rule() {
        assert_eq!(which("fully-random"), [Nat::Symmetric]);
        assert_eq!(which("\"wan\" meta l4proto udp dnat to"), [Nat::EndpointIndependent, Nat::Hairpin]);
        assert_eq!(which("snat to 127.0.0.1"), [Nat::Hairpin]);
        assert_eq!(which("@asked dnat to"), [Nat::AddressDependent]);
        assert_eq!(which("meta l4proto udp drop"), [Nat::UdpBlocked]);
        assert_eq!(which("iifname \"wan\" ct state new drop"), ALL);
    }

    #[test]
    fn a_forwarded_port_is_open_for_both_protocols() {
        assert_eq!(
            forward(4433, Ipv4Addr::new(192, 168, 1, 2)),
            "add element ip router forwarded { udp . 4433 : 192.168.1.2, tcp . 4433 : 192.168.1.2 }\n"
        );
    }

    #[test]
    fn loss_is_counted_in_thousandths_and_a_cut_is_all_of_them() {
        let rule = |permille| faults("p1", permille).lines().nth(5).map(|line| line.trim().to_owned());
        assert_eq!(rule(0).as_deref(), Some(""));
        assert_eq!(rule(20).as_deref(), Some("numgen random mod 1000 < 20 drop"));
        assert_eq!(rule(1000).as_deref(), Some("drop"));
    }
}
