//! What the doctor says of firewalls, which are put up for real.

use qmt_tests::lab::Host;
use serde_json::Value;

use crate::mesh::{self, Node, until};

/// Replaces the firewall of a host.
fn firewall(host: &Host, rule: &str) {
    let set = format!(
        "nft delete table inet doctor 2>/dev/null; nft add table inet doctor && \
         nft 'add chain inet doctor in {{ type filter hook input priority 0; }}' && \
         nft 'add chain inet doctor out {{ type filter hook output priority 0; }}' && nft 'add rule inet doctor {rule}'"
    );
    let done = host.run("sh", &["-c", &set]);
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}

/// What the doctor finds; it fails when it finds a failure, and prints all the same.
fn findings(node: &Node) -> Vec<Value> {
    match node.ask(&["doctor"]) {
        Ok(found) => found.as_array().unwrap().clone(),
        Err(said) => {
            let end = said.rfind(']').unwrap();
            serde_json::from_str::<Value>(&said[..=end]).unwrap().as_array().unwrap().clone()
        }
    }
}

/// Waits until the doctor has a finding of this check, grade and text.
fn finds(node: &Node, check: &str, state: &str, text: &str) -> Value {
    until(&format!("the doctor of {} says {state} {check} ... {text}", node.name()), || {
        findings(node).into_iter().find(|one| {
            one["check"] == check && one["state"] == state && one["detail"].as_str().unwrap().contains(text)
        })
    })
}

#[test]
fn a_firewall_is_found_at_the_machine_that_has_it_and_at_the_other() {
    let Some((mut lab, programs)) = mesh::lab() else { return };
    let lan = lab.lan();
    let hosts = [lab.host(&lan), lab.host(&lan)];
    let port = 7_000;
    let line = format!("mesh.internet.bind_port = {port}\n");
    let a = Node::start(&programs, &hosts[0], "a", &line);
    let b = Node::start(&programs, &hosts[1], "b", &line);
    b.join(&a.invite(1)).unwrap();
    a.sees(&b, "alive");
    finds(&a, "firewall", "ok", &format!("{}:{port}", hosts[0].address()));

    // b lets nothing in.
    firewall(&hosts[1], &format!("in udp dport {port} drop"));
    let own = finds(&b, "firewall", "fail", &format!("{}:{port}", hosts[1].address()));
    assert!(own["mend"].as_str().unwrap().contains(&format!("ufw allow {port}/udp")), "{own}");
    let other = finds(&a, "firewall", "warn", &format!("{}:{port}", hosts[1].address()));
    assert!(other["detail"].as_str().unwrap().starts_with("b is not reached"), "{other}");

    // It rejects instead: what comes back says that nobody has the port.
    firewall(&hosts[1], &format!("in udp dport {port} reject"));
    finds(&a, "reach", "warn", "nobody has the port");

    // a lets nothing out.
    firewall(&hosts[1], "in udp dport 1 drop");
    firewall(&hosts[0], &format!("out udp dport {port} ip daddr {} drop", hosts[1].address()));
    let out = finds(&a, "firewall", "fail", "does not let UDP out");
    assert!(out["mend"].as_str().unwrap().contains("nft insert rule"), "{out}");
}
