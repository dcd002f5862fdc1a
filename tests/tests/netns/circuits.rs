//! Two houses whose nodes have no other way to each other than a third node on the LAN transport.

use qmt_tests::lab::{Host, Lab, Nat};

use crate::mesh::{self, Node, Programs, until};

/// A public node that carries circuits, and two nodes behind NATs of that kind which know its address, all in one mesh.
struct Houses {
    third: Node,
    a: Node,
    b: Node,
    hosts: [Host; 2],
}

fn houses(lab: &mut Lab, programs: &Programs, nat: Nat) -> Houses {
    let wan = lab.wan();
    let public = lab.host(&wan);
    let third = "relay.enabled = true\nmesh.enabled = true\nmesh.lan = { enabled = true, listen = \"/ip4/0.0.0.0/tcp/4001\", discovery = \
                 \"none\" }\n";
    let third = Node::start(programs, &public, "third", third);
    // Without the relay that the invite names, so that the internet transport has no way between the houses.
    let inside = format!(
        "mesh.enabled = true\nmesh.lan = {{ enabled = true, discovery = \"none\" }}\n\
         mesh.peers = [{{ addr = \"/ip4/{}/tcp/4001\" }}]\n\
         mesh.iroh = [{{ enabled = true, relay_mode = \"disabled\", invite = \"{}\" }}]\n",
        public.address(),
        third.invite(2)
    );
    let hosts = [(); 2].map(|()| {
        let house = lab.lan();
        lab.router(&wan, &house, nat);
        lab.host(&house)
    });
    let a = Node::start(programs, &hosts[0], "a", &inside);
    let b = Node::start(programs, &hosts[1], "b", &inside);
    Houses { third, a, b, hosts }
}

fn way(from: &Node, to: &Node) -> Option<String> {
    from.ping(to, 1).ok()?.pop()
}

#[test]
fn a_circuit_becomes_a_direct_link_through_ordinary_routers() {
    let Some((mut lab, programs)) = mesh::lab() else { return };
    let Houses { a, b, third: _third, hosts: _hosts } = houses(&mut lab, &programs, Nat::PortDependent);
    for (from, to) in [(&a, &b), (&b, &a)] {
        until("a direct way by the LAN transport", || way(from, to).filter(|way| way == "direct"));
    }
}

#[test]
fn behind_symmetric_routers_it_stays_a_circuit_and_ends_with_the_third_node() {
    let Some((mut lab, programs)) = mesh::lab() else { return };
    let Houses { third, a, b, hosts: _hosts } = houses(&mut lab, &programs, Nat::Symmetric);
    let way = until("a reaches b by a circuit", || way(&a, &b));
    assert_eq!(way, "relayed");
    b.reaches(&a);
    assert_eq!(a.ping(&b, 10).unwrap(), vec!["relayed"; 10]);
    drop(third);
    b.sees(&a, "down");
    a.sees(&b, "down");
    assert!(a.ping(&b, 1).is_err());
}
