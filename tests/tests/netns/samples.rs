//! The samples of docs/configuration.md, each started as it stands there.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use qmt_tests::lab::Host;

use crate::mesh::{self, Node, Programs, until};

/// One block of the page, under its heading.
struct Sample {
    heading: String,
    text: String,
}

/// The TOML blocks of a section, in order.
fn samples(section: &str) -> Vec<Sample> {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/configuration.md");
    let page = std::fs::read_to_string(page).unwrap();
    let (_, after) =
        page.split_once(&format!("\n## {section}\n")).unwrap_or_else(|| panic!("no section {section}"));
    let body = after.split("\n## ").next().unwrap();
    let mut found = Vec::new();
    for part in body.split("\n### ").skip(1) {
        let heading = part.lines().next().unwrap().to_owned();
        for block in part.split("```toml\n").skip(1) {
            let text = block.split("```").next().unwrap().to_owned();
            found.push(Sample { heading: heading.clone(), text });
        }
    }
    found
}

/// The variables without a default that a sample names: each is an invite.
fn invites_of(text: &str) -> BTreeSet<String> {
    let names = text.split("${").skip(1).filter_map(|rest| rest.split_once('}')).map(|(name, _)| name);
    names.filter(|name| !name.contains(":-")).map(str::to_owned).collect()
}

/// A node that others are invited by, into one mesh for each variable.
struct Hub {
    node: Node,
    meshes: BTreeMap<String, String>,
}

impl Hub {
    fn start(programs: &Programs, host: &Host) -> Self {
        Self { node: Node::start(programs, host, "hub", ""), meshes: BTreeMap::new() }
    }

    /// The environment in which a sample finds its invites.
    fn environment(&mut self, sample: &Sample) -> Vec<(String, String)> {
        let tokens = invites_of(&sample.text).into_iter().map(|variable| {
            let token = self.meshes.entry(variable.clone()).or_insert_with(|| {
                let name = variable.to_lowercase();
                let invite = self.node.ask(&["invite", "--name", &name, "--uses", "0"]).unwrap();
                invite["token"].as_str().unwrap().to_owned()
            });
            (variable, token.clone())
        });
        tokens.collect()
    }
}

/// The ids of the meshes that the node is in.
fn meshes_of(node: &Node) -> BTreeSet<String> {
    let status = node.ask(&["status"]).unwrap();
    let scopes = status["scopes"].as_array().unwrap().iter();
    scopes.map(|scope| scope["name"].as_str().unwrap().to_owned()).collect()
}

/// What the node must be in for a sample: the mesh of each invite, those that it founds, and `lan` where it is asked for.
fn expected(sample: &Sample, environment: &[(String, String)]) -> BTreeSet<String> {
    let mut meshes: BTreeSet<_> = environment.iter().map(|(variable, _)| variable.to_lowercase()).collect();
    let text = &sample.text;
    let tables: Vec<&str> = text.split("\n[").collect();
    for table in tables.iter().filter(|table| table.starts_with("[mesh.iroh]]") && !table.contains("invite"))
    {
        let name = table.split("name = \"").nth(1).unwrap().split('"').next().unwrap();
        meshes.insert(name.to_owned());
    }
    let is_internet = text.contains("transport = \"iroh\"") || text.contains("\n[[mesh.iroh]]");
    let has_lan = text.contains("[mesh.lan]") || text.contains("[[mesh.peers]]") || !is_internet;
    if has_lan && !text.contains("trust = \"invite\"") {
        meshes.insert("lan".to_owned());
    }
    meshes
}

fn is_in(node: &Node, sample: &Sample, wanted: &BTreeSet<String>) {
    until(&format!("{:?} is in {wanted:?}", sample.heading), || (meshes_of(node) == *wanted).then_some(()));
}

#[test]
fn every_sample_of_the_page_starts_and_does_what_it_says() {
    let Some((mut lab, programs)) = mesh::lab() else { return };
    let home = lab.lan();
    let (hub_host, host) = (lab.host(&home), lab.host(&home));
    let mut hub = Hub::start(&programs, &hub_host);
    let samples = samples("Samples");
    assert!(samples.len() >= 12, "the page has lost its samples");
    for sample in &samples {
        let environment = hub.environment(sample);
        let node = Node::start_as_written(&programs, &host, "sample", &sample.text, &environment);
        is_in(&node, sample, &expected(sample, &environment));
    }
}

#[test]
fn a_node_moves_to_more_meshes_by_its_file() {
    let Some((mut lab, programs)) = mesh::lab() else { return };
    let home = lab.lan();
    let (hub_host, host) = (lab.host(&home), lab.host(&home));
    let mut hub = Hub::start(&programs, &hub_host);
    let samples = samples("Moving to more meshes");
    assert_eq!(samples.len(), 4);
    for pair in samples.chunks(2) {
        let [before, after] = pair else { unreachable!() };
        assert_eq!(before.heading, after.heading);
        let environment = hub.environment(before);
        let node = Node::start_as_written(&programs, &host, "moving", &before.text, &environment);
        is_in(&node, before, &expected(before, &environment));
        let id = |node: &Node| node.ask(&["status"]).unwrap()["node_id"].clone();
        let was = id(&node);
        let environment = hub.environment(after);
        let node = node.restart_as_written(&host, &after.text, &environment);
        is_in(&node, after, &expected(after, &environment));
        assert_eq!(id(&node), was);
    }
}
