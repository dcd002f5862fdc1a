//! Cables that break and addresses that change under running nodes.

use qmt_tests::lab::{Cut, Host, Lab};

use crate::mesh::{self, Node, Programs};

/// Two nodes in one network that see each other.
fn pair(lab: &mut Lab, programs: &Programs) -> ([Host; 2], [Node; 2]) {
    let lan = lab.lan();
    let hosts = [lab.host(&lan), lab.host(&lan)];
    let a = Node::start(programs, &hosts[0], "a", "");
    let b = Node::start(programs, &hosts[1], "b", "");
    b.join(&a.invite(1)).unwrap();
    a.sees(&b, "alive");
    b.sees(&a, "alive");
    (hosts, [a, b])
}

fn a_link_comes_back_by_itself_after(cut: Cut) {
    let Some((mut lab, programs)) = mesh::lab() else { return };
    let (hosts, [a, b]) = pair(&mut lab, &programs);
    hosts[1].plug().cut(cut);
    a.sees(&b, "down");
    b.sees(&a, "down");
    hosts[1].plug().mend();
    a.sees(&b, "alive");
    b.sees(&a, "alive");
    a.reaches(&b);
    b.reaches(&a);
}

#[test]
fn a_link_comes_back_by_itself_after_a_silent_cut() {
    a_link_comes_back_by_itself_after(Cut::Silent);
}

#[test]
fn a_link_comes_back_by_itself_after_a_pulled_cable() {
    a_link_comes_back_by_itself_after(Cut::Unplugged);
}

#[test]
fn a_node_whose_address_changes_is_reached_again() {
    let Some((mut lab, programs)) = mesh::lab() else { return };
    let ([_, mut moved], [a, b]) = pair(&mut lab, &programs);
    let address = lab.change_address(&mut moved);
    mesh::until("a knows the new address and reaches b by it", || {
        let nodes = a.ask(&["nodes"]).unwrap();
        let b_seen = nodes.as_array().unwrap().iter().find(|node| node["name"] == "b")?.clone();
        let known = b_seen["addresses"].to_string().contains(&format!("\"{address}:"));
        (known && b_seen["state"] == "alive" && a.ping(&b, 1).is_ok()).then_some(())
    });
    b.reaches(&a);
}
