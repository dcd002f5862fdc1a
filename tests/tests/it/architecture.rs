//! The house stands as ARCHITECTURE.md draws it: which crate may use which, and what every crate has.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use cargo_metadata::{DependencyKind, Metadata, MetadataCommand};

/// Each crate and the crates of the workspace that it may depend on, outside of its tests.
const EDGES: &[(&str, &[&str])] = &[
    ("mesh-identity", &[]),
    ("mesh-transport", &["mesh-identity"]),
    ("mesh-gossip", &["mesh-identity", "mesh-transport"]),
    ("mesh-routing", &["mesh-identity"]),
    ("mesh-tunnel", &["mesh-identity", "mesh-transport"]),
    ("mesh-sessions", &["mesh-identity", "mesh-transport", "mesh-routing"]),
    ("mesh-inference", &["mesh-identity", "mesh-transport", "mesh-routing", "mesh-tunnel"]),
    ("mesh-control", &[]),
    (
        "qmt-node",
        &[
            "mesh-identity",
            "mesh-transport",
            "mesh-gossip",
            "mesh-routing",
            "mesh-tunnel",
            "mesh-sessions",
            "mesh-inference",
            "mesh-control",
        ],
    ),
    ("qmt-cli", &["mesh-identity", "mesh-control"]),
];

/// Members that see everything and that nothing but each other depends on: tests, examples, benchmarks.
const OUTSIDE: &[&str] = &["qmt-tests", "qmt-examples", "qmt-bench"];

/// The only crate that names what carries a link.
const CARRIER: &str = "mesh-transport";

/// Crates that still owe their example; the list only shrinks.
const WITHOUT_EXAMPLE: &[&str] = &["mesh-sessions"];

/// What the checks look at, freed from cargo's types so that a test can doctor it.
#[derive(Debug, Clone, Default)]
struct House {
    crates: BTreeMap<String, Crate>,
    unsafe_code: Option<String>,
}

#[derive(Debug, Clone, Default)]
struct Crate {
    /// Outside of tests: normal and build dependencies, of the workspace or not.
    uses: BTreeSet<String>,
    /// In tests.
    tests_use: BTreeSet<String>,
    inherits_lints: bool,
    has_description: bool,
    has_license: bool,
    has_example: bool,
    is_published: bool,
}

/// Everything that is wrong, one line each.
fn faults(house: &House) -> Vec<String> {
    let mut faults = Vec::new();
    let allowed: BTreeMap<_, BTreeSet<_>> =
        EDGES.iter().map(|(name, uses)| (*name, uses.iter().copied().collect())).collect();
    for name in allowed.keys().filter(|name| !house.crates.contains_key(**name)) {
        faults.push(format!("{name} is in the table and not in the workspace"));
    }
    for (name, one) in &house.crates {
        let mut fault = |what: String| faults.push(format!("{name}: {what}"));
        if !one.inherits_lints {
            fault("lacks lints.workspace = true".to_owned());
        }
        for foreign in one.uses.union(&one.tests_use).filter(|used| is_carrier_of_links(used)) {
            if name != CARRIER {
                fault(format!("names {foreign}; only {CARRIER} may"));
            }
        }
        if OUTSIDE.contains(&name.as_str()) {
            if one.is_published {
                fault("is not for publishing".to_owned());
            }
            continue;
        }
        let Some(allowed) = allowed.get(name.as_str()) else {
            fault("is not in the table".to_owned());
            continue;
        };
        for used in one.uses.iter().filter(|used| house.crates.contains_key(*used)) {
            if !allowed.contains(used.as_str()) {
                fault(format!("may not depend on {used}"));
            }
        }
        if !(one.has_description && one.has_license) {
            fault("lacks a description or a license".to_owned());
        }
        let shows = one.has_example || WITHOUT_EXAMPLE.contains(&name.as_str());
        if name.starts_with("mesh-") && one.is_published && !shows {
            fault("lacks an example".to_owned());
        }
    }
    if house.unsafe_code.as_deref() != Some("forbid") {
        faults.push("the root's lints do not forbid unsafe_code".to_owned());
    }
    faults
}

fn is_carrier_of_links(name: &str) -> bool {
    let is =
        |family: &str| name == family || name.strip_prefix(family).is_some_and(|rest| rest.starts_with('-'));
    is("libp2p") || is("iroh")
}

/// Read when the test runs: checkouts that share a target directory share its binaries, whichever of them built those.
fn root() -> PathBuf {
    let tests = std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo runs the tests");
    Path::new(&tests).parent().expect("tests/ lies in the root").to_path_buf()
}

fn read(path: &Path) -> toml::Table {
    std::fs::read_to_string(path).expect("a readable manifest").parse().expect("a manifest")
}

fn house() -> House {
    let metadata: Metadata = MetadataCommand::new()
        .manifest_path(root().join("Cargo.toml"))
        .no_deps()
        .other_options(["--offline".to_owned()])
        .exec()
        .expect("cargo metadata");
    let crates = metadata.workspace_packages().into_iter().map(|package| {
        let used = |in_tests: bool| {
            let kind = move |kind: DependencyKind| (kind == DependencyKind::Development) == in_tests;
            let others = package.dependencies.iter().filter(|used| used.name != package.name.as_str());
            others.filter(|used| kind(used.kind)).map(|used| used.name.clone()).collect()
        };
        let manifest = read(package.manifest_path.as_std_path());
        let one = Crate {
            uses: used(false),
            tests_use: used(true),
            inherits_lints: manifest["lints"]["workspace"].as_bool() == Some(true),
            has_description: package.description.as_ref().is_some_and(|text| !text.is_empty()),
            has_license: package.license.is_some(),
            has_example: package.targets.iter().any(|target| target.is_example()),
            is_published: package.publish.is_none(),
        };
        (package.name.to_string(), one)
    });
    let manifest = read(&root().join("Cargo.toml"));
    let unsafe_code = manifest["workspace"]["lints"]["rust"]["unsafe_code"].as_str().map(str::to_owned);
    House { crates: crates.collect(), unsafe_code }
}

#[test]
fn the_house_stands_as_it_is_drawn() {
    let faults = faults(&house());
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

#[test]
fn our_own_crates_are_asked_for_exactly() {
    let manifest = read(&root().join("Cargo.toml"));
    let dependencies = manifest["workspace"]["dependencies"].as_table().expect("a table");
    let own = dependencies.iter().filter(|(_, one)| one.get("path").is_some());
    let loose: Vec<_> = own
        .filter(|(_, one)| !one["version"].as_str().is_some_and(|version| version.starts_with('=')))
        .map(|(name, _)| name)
        .collect();
    assert!(loose.is_empty(), "another's crate of that name could take their place: {loose:?}");
    assert!(dependencies.iter().filter(|(_, one)| one.get("path").is_some()).count() >= EDGES.len());
}

/// Doctors the real house and says what the checks find.
fn found_after(doctor: impl FnOnce(&mut House)) -> Vec<String> {
    let mut house = house();
    let before: BTreeSet<_> = faults(&house).into_iter().collect();
    doctor(&mut house);
    faults(&house).into_iter().filter(|fault| !before.contains(fault)).collect()
}

fn of<'a>(house: &'a mut House, name: &str) -> &'a mut Crate {
    house.crates.get_mut(name).expect("a crate of the workspace")
}

#[test]
fn an_edge_upwards_or_sideways_is_found() {
    let add = |to: &'static str, used: &'static str| {
        move |house: &mut House| _ = of(house, to).uses.insert(used.to_owned())
    };
    for (to, used) in [
        ("mesh-identity", "mesh-control"),
        ("mesh-gossip", "mesh-routing"),
        ("mesh-routing", "mesh-transport"),
        ("mesh-tunnel", "mesh-gossip"),
        ("mesh-sessions", "mesh-inference"),
        ("mesh-control", "mesh-identity"),
        ("qmt-cli", "mesh-transport"),
        ("qmt-cli", "qmt-node"),
        ("qmt-node", "qmt-cli"),
    ] {
        assert_eq!(found_after(add(to, used)), [format!("{to}: may not depend on {used}")]);
    }
}

#[test]
fn a_carrier_named_outside_of_its_crate_is_found_even_in_tests() {
    for carrier in ["iroh", "iroh-relay", "libp2p", "libp2p-identity"] {
        let found = found_after(|house| _ = of(house, "qmt-node").tests_use.insert(carrier.to_owned()));
        assert_eq!(found, [format!("qmt-node: names {carrier}; only mesh-transport may")]);
        assert!(found_after(|house| _ = of(house, CARRIER).uses.insert(carrier.to_owned())).is_empty());
    }
    assert!(!is_carrier_of_links("irohazard") && !is_carrier_of_links("multiaddr"));
}

#[test]
fn what_a_crate_lacks_is_found() {
    let found = found_after(|house| of(house, "mesh-routing").inherits_lints = false);
    assert_eq!(found, ["mesh-routing: lacks lints.workspace = true"]);
    let found = found_after(|house| of(house, "mesh-routing").has_description = false);
    assert_eq!(found, ["mesh-routing: lacks a description or a license"]);
    let found = found_after(|house| of(house, "mesh-routing").has_license = false);
    assert_eq!(found, ["mesh-routing: lacks a description or a license"]);
    let found = found_after(|house| of(house, "mesh-routing").has_example = false);
    assert_eq!(found, ["mesh-routing: lacks an example"]);
    let found = found_after(|house| of(house, "qmt-tests").is_published = true);
    assert_eq!(found, ["qmt-tests: is not for publishing"]);
    let found = found_after(|house| house.unsafe_code = Some("deny".to_owned()));
    assert_eq!(found, ["the root's lints do not forbid unsafe_code"]);
}

#[test]
fn a_crate_that_comes_or_goes_unannounced_is_found() {
    let common = Crate { inherits_lints: true, ..Crate::default() };
    let found = found_after(|house| _ = house.crates.insert("mesh-common".to_owned(), common));
    assert_eq!(found, ["mesh-common: is not in the table"]);
    let found = found_after(|house| _ = house.crates.remove("mesh-control"));
    assert!(found.contains(&"mesh-control is in the table and not in the workspace".to_owned()), "{found:?}");
}
