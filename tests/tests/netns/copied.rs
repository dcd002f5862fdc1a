//! Two machines that run with one key file.

use crate::mesh::{self, Node, until};

/// Waits until the node's status and its doctor name both addresses; what the status says.
fn is_told(node: &Node, addresses: &[String; 2]) -> String {
    let names_both = |text: &str| addresses.iter().all(|address| text.contains(&format!("{address}:")));
    let said = until(&format!("{} says in its status where both are", node.name()), || {
        let status = node.ask(&["status"]).unwrap();
        let warnings = status["warnings"].as_array().unwrap().clone();
        warnings
            .iter()
            .filter_map(|warning| warning.as_str())
            .find(|text| names_both(text))
            .map(str::to_owned)
    });
    // It exits with a failure and prints its findings all the same.
    let findings = node.ask(&["doctor"]).expect_err("the doctor finds a failure");
    assert!(findings.contains("one key") || findings.contains("the key of this one"), "{findings}");
    said
}

#[test]
fn two_nodes_with_one_key_file_are_named_by_everybody_with_what_to_do() {
    let Some((mut lab, programs)) = mesh::lab() else { return };
    let lan = lab.lan();
    let hosts = [lab.host(&lan), lab.host(&lan), lab.host(&lan)];
    let a = Node::start(&programs, &hosts[0], "a", "");
    let b = Node::start(&programs, &hosts[1], "b", "");
    let token = a.invite(2);
    b.join(&token).unwrap();
    a.sees(&b, "alive");
    let copy = b.start_copy(&hosts[2], "copy");
    copy.join(&token).unwrap();
    let addresses = [hosts[1].address().to_string(), hosts[2].address().to_string()];
    for node in [&a, &b, &copy] {
        let said = is_told(node, &addresses);
        println!("{}: {said}", node.name());
        assert!(said.contains("delete mesh_identity.key"), "{said}");
    }
}
