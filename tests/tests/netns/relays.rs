//! Relays that members run, and what goes on when one of them dies.

use qmt_tests::lab::{Cut, Host, Lab, Lan, Nat};

use crate::mesh::{self, Node, Programs, until};

/// A node that runs a relay, on the internet.
fn relay(lab: &mut Lab, programs: &Programs, wan: &Lan, name: &'static str) -> (Host, Node) {
    let host = lab.host(wan);
    let node = Node::start(programs, &host, name, "relay.enabled = true\n");
    (host, node)
}

/// A node in a house of its own.
fn behind(lab: &mut Lab, programs: &Programs, wan: &Lan, nat: Nat, name: &'static str) -> Node {
    let inside = lab.lan();
    lab.router(wan, &inside, nat);
    let host = lab.host(&inside);
    Node::start(programs, &host, name, "")
}

/// The addresses that a node tells of itself.
fn own_addresses(node: &Node) -> String {
    let nodes = node.ask(&["nodes"]).unwrap();
    let own = nodes.as_array().unwrap().iter().find(|node| node["state"] == "me" || node["state"] == "self");
    own.unwrap()["addresses"].to_string()
}

fn pings_relayed(from: &Node, to: &Node) {
    let relayed = || from.ping(to, 1).ok()?.pop().filter(|path| path == "relayed");
    if mesh::seen(mesh::PATIENCE, relayed).is_none() {
        panic!("no ping is relayed: {:?}; {}", from.ping(to, 1), from.ask(&["nodes"]).unwrap());
    }
}

// Where an old connection outlives the relay for a moment, iroh goes on sending to that relay on all connections to the peer:
// about one run in four fails. docs/protocols/relay.md says so.
#[test]
#[ignore = "fails in one run of four: iroh keeps to the path by the relay that died"]
fn the_next_relay_carries_what_one_that_dies_carried() {
    let Some((mut lab, programs)) = mesh::lab() else { return };
    let wan = lab.wan();
    let (first_host, first) = relay(&mut lab, &programs, &wan, "first");
    let (second_host, second) = relay(&mut lab, &programs, &wan, "second");
    let a = behind(&mut lab, &programs, &wan, Nat::Symmetric, "a");
    let b = behind(&mut lab, &programs, &wan, Nat::Symmetric, "b");
    let token = first.invite(3);
    for node in [&second, &a, &b] {
        node.join(&token).unwrap();
    }
    for (node, other) in [(&a, &b), (&b, &a), (&a, &second), (&b, &second)] {
        node.sees(other, "alive");
    }
    pings_relayed(&a, &b);
    let is_at_first = own_addresses(&a).contains(&format!("https://{}:", first_host.address()));
    let (dying, next) = if is_at_first { (first, &second_host) } else { (second, &first_host) };
    drop(dying);
    pings_relayed(&a, &b);
    pings_relayed(&b, &a);
    until("a tells that the other relay is its home", || {
        own_addresses(&a).contains(&format!("https://{}:", next.address())).then_some(())
    });
}

#[test]
fn direct_links_outlive_their_relay_and_relayed_ones_return_with_it() {
    let Some((mut lab, programs)) = mesh::lab() else { return };
    let wan = lab.wan();
    let (host, relay) = relay(&mut lab, &programs, &wan, "relay");
    let a = behind(&mut lab, &programs, &wan, Nat::PortDependent, "a");
    let b = behind(&mut lab, &programs, &wan, Nat::PortDependent, "b");
    let c = behind(&mut lab, &programs, &wan, Nat::Symmetric, "c");
    let token = relay.invite(3);
    for node in [&a, &b, &c] {
        node.join(&token).unwrap();
    }
    for other in [&b, &c] {
        a.sees(other, "alive");
    }
    until("a reaches b directly", || a.ping(&b, 1).ok()?.pop().filter(|path| path == "direct"));
    pings_relayed(&a, &c);
    host.plug().cut(Cut::Silent);
    a.sees(&relay, "down");
    a.sees(&c, "down");
    assert!(a.ping(&c, 1).is_err());
    assert_eq!(a.ping(&b, 3).unwrap(), ["direct"; 3]);
    assert_eq!(a.state_of(&b).as_deref(), Some("alive"));
    host.plug().mend();
    a.sees(&c, "alive");
    pings_relayed(&a, &c);
}

#[test]
fn the_invite_of_a_member_leads_in_through_the_relay_of_another() {
    let Some((mut lab, programs)) = mesh::lab() else { return };
    let wan = lab.wan();
    let (host, relay) = relay(&mut lab, &programs, &wan, "relay");
    let inviter = behind(&mut lab, &programs, &wan, Nat::Symmetric, "inviter");
    let joiner = behind(&mut lab, &programs, &wan, Nat::Symmetric, "joiner");
    let invite = relay.ask(&["invite", "--can-invite"]).unwrap();
    inviter.join(invite["token"].as_str().unwrap()).unwrap();
    inviter.sees(&relay, "alive");
    until("the inviter has the relay as its home", || {
        own_addresses(&inviter).contains(&format!("https://{}:", host.address())).then_some(())
    });
    let token = inviter.invite(1);
    until("the joiner gets in", || joiner.join(&token).ok());
    joiner.sees(&inviter, "alive");
    joiner.sees(&relay, "alive");
    pings_relayed(&joiner, &inviter);
}
