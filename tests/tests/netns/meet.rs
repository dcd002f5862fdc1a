//! Nodes of one network that nobody introduced.

use qmt_tests::lab::Nat;

use crate::mesh::{self, Node, until};

/// Whether a node has a direct LAN link to another one in the scope of uninvited peers.
fn is_met(node: &Node, other: &Node) -> bool {
    let nodes = node.ask(&["nodes"]).unwrap();
    nodes.as_array().unwrap().iter().any(|seen| {
        seen["name"] == other.name()
            && seen["scope_name"] == "lan"
            && (&seen["state"], &seen["transport"], &seen["path"])
                == (&"alive".into(), &"lan".into(), &"direct".into())
    })
}

fn meets(node: &Node, other: &Node) {
    until(&format!("{} meets {}", node.name(), other.name()), || is_met(node, other).then_some(()));
}

#[test]
fn nodes_of_one_network_meet_with_nothing_set_up_and_those_of_another_do_not() {
    let Some((mut lab, programs)) = mesh::lab() else { return };
    let (wan, home) = (lab.wan(), lab.lan());
    let router = lab.router(&wan, &home, Nat::PortDependent);
    let hosts = [lab.host(&home), lab.host(&home), lab.host(&wan)];
    let on = "mesh.enabled = true\n";
    let first = Node::start(&programs, &hosts[0], "first", on);
    let second = Node::start(&programs, &hosts[1], "second", on);
    let outside = Node::start(&programs, &hosts[2], "outside", on);
    meets(&first, &second);
    meets(&second, &first);
    assert!(!is_met(&outside, &first) && !is_met(&first, &outside));
    drop(router);

    // The way is told, and why; a stranger goes by its id.
    let id = |node: &Node| node.ask(&["status"]).unwrap()["node_id"].as_str().unwrap().to_owned();
    let ways = first.ask(&["routes", &id(&second)]).unwrap();
    assert_eq!((&ways[0]["transport"], &ways[0]["path"]), (&"lan".into(), &"direct".into()), "{ways}");
    assert_eq!(ways[0]["why"], "straight over the local network");
    let unnamed = first.ask(&["routes", "second"]).unwrap_err();
    assert!(unnamed.contains("second"), "{unnamed}");
}

#[test]
fn a_pre_shared_key_keeps_to_itself_and_static_peers_meet_without_multicast() {
    let Some((mut lab, programs)) = mesh::lab() else { return };
    let home = lab.lan();
    let hosts = [lab.host(&home), lab.host(&home), lab.host(&home)];
    let with = |psk: &str| format!("[mesh.lan]\nenabled = true\npsk = \"{psk}\"\n");
    let first = Node::start(&programs, &hosts[0], "first", &with("four words of luck"));
    let other = Node::start(&programs, &hosts[1], "other", &with("four other words"));
    let quiet = format!(
        "{}discovery = \"none\"\n[[mesh.peers]]\naddr = \"/ip4/{}/tcp/9000\"\n",
        with("four words of luck"),
        hosts[2].address()
    );
    drop(first);
    let quiet = Node::start(&programs, &hosts[0], "quiet", &quiet);
    let listen = "listen = \"/ip4/0.0.0.0/tcp/9000\"\ndiscovery = \"none\"\n";
    let late = Node::start(&programs, &hosts[2], "late", &format!("{}{listen}", with("four words of luck")));
    meets(&quiet, &late);
    meets(&late, &quiet);
    assert!(![&quiet, &late].iter().any(|node| is_met(node, &other) || is_met(&other, node)));
}
