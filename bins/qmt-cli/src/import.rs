//! `config import`: the `mesh:` block of a YAML configuration as this node's TOML.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::path::Path;

use serde::Serialize;
use serde_json::{Map, Value};

use crate::failure::Failure;
use crate::screen::Screen;

/// Bytes of a configuration that somebody wrote by hand, and far beyond.
const BYTES_MAX: u64 = 1024 * 1024;
/// Where that system keeps its CA, whatever its `storage_dir` is.
const CA: &str = "/rivet-shared/rivet-ca";

/// What came of it, with `--json`.
#[derive(Serialize)]
struct Imported {
    /// The configuration.
    toml: String,
    /// What is not as it was.
    notes: Vec<String>,
}

pub(crate) fn import(screen: &Screen, from: &Path, to: Option<&Path>) -> Result<(), Failure> {
    let bad = |error: std::io::Error| {
        Failure::new("import", format!("{} cannot be read: {error}", from.display()))
            .with_mend("name a file that you may read")
    };
    let mut text = String::new();
    File::open(from).and_then(|file| file.take(BYTES_MAX).read_to_string(&mut text)).map_err(bad)?;
    let imported = convert(&text).map_err(|why| {
        Failure::new("import", format!("{}: {why}", from.display()))
            .with_mend("correct it there, and import it again")
    })?;
    if let Some(to) = to {
        let file = OpenOptions::new().write(true).create_new(true).open(to);
        file.and_then(|mut file| file.write_all(imported.toml.as_bytes())).map_err(|error| {
            Failure::new("import", format!("{} cannot be written: {error}", to.display()))
                .with_mend("name a file that is not there yet, in a folder that you may write to")
        })?;
        screen.note(&format!("{} is written; start the node with --config {0}", to.display()));
        return if screen.is_json() { screen.show(&imported, |_| String::new()) } else { Ok(()) };
    }
    screen.show(&imported, |imported| imported.toml.clone())
}

/// The TOML, in which each thing that changed stands as a comment too.
fn convert(yaml: &str) -> Result<Imported, String> {
    let document: Value = serde_saphyr::from_str(yaml).map_err(|error| format!("it is no YAML: {error}"))?;
    let Some(mesh) = document.get("mesh") else { return Err("it has no mesh: block".to_owned()) };
    let Value::Object(mesh) = mesh else { return Err("mesh: is no block of keys".to_owned()) };
    let mut out = Out { text: String::new(), notes: Vec::new() };
    out.remark("Imported by `qmt-cli config import`.");
    out.text.push_str("[agent_channel]\n");
    channel(mesh, &mut out)?;
    tls(mesh, &mut out)?;
    discovery(mesh, &mut out)?;
    Ok(Imported { toml: out.text, notes: out.notes })
}

/// The text so far, and what is to be said of it.
struct Out {
    text: String,
    notes: Vec<String>,
}

impl Out {
    fn remark(&mut self, text: &str) {
        self.text.push_str(&format!("# {text}\n"));
    }

    fn note(&mut self, text: String) {
        self.remark(&text);
        self.notes.push(text);
    }

    /// A key with a text or a number. JSON's texts are TOML's too.
    fn set(&mut self, key: &str, value: &Value) {
        self.text.push_str(&format!("{key} = {value}\n"));
    }
}

fn channel(mesh: &Map<String, Value>, out: &mut Out) -> Result<(), String> {
    out.set("enabled", &flag(mesh, "mesh", "enabled")?.unwrap_or(false).into());
    for key in ["node_name", "storage_dir"] {
        if let Some(value) = text(mesh, "mesh", key)? {
            out.set(key, &value);
        }
    }
    for key in ["agent_channel_port", "heartbeat_interval_ms", "stale_threshold_ms"] {
        if let Some(value) = number(mesh, "mesh", key)? {
            out.set(key, &value);
        }
    }
    if !mesh.contains_key("node_name") {
        out.remark(
            "node_name is that of [mesh], and else the host's: it must be the name in the certificate.",
        );
    }
    if mesh.contains_key("secret") {
        out.note("secret is left out: nothing uses it, certificates say who calls.".to_owned());
    }
    let known = [
        "enabled",
        "node_name",
        "storage_dir",
        "agent_channel_port",
        "heartbeat_interval_ms",
        "stale_threshold_ms",
        "secret",
        "tls",
        "discovery",
        "peers",
    ];
    leave_out(mesh, "mesh", &known, out);
    Ok(())
}

fn tls(mesh: &Map<String, Value>, out: &mut Out) -> Result<(), String> {
    let paths = match mesh.get("tls") {
        None | Some(Value::Null | Value::Bool(false)) => {
            out.text.push_str("tls = true\n");
            out.note("tls was not on: there is no channel without it.".to_owned());
            return Ok(());
        }
        Some(Value::Bool(true)) => {
            let elsewhere =
                text(mesh, "mesh", "storage_dir")?.is_some_and(|folder| folder != "/rivet-shared");
            let name = text(mesh, "mesh", "node_name")?;
            let Some(Value::String(name)) = name.filter(|_| elsewhere) else {
                out.text.push_str("tls = true\n");
                return Ok(());
            };
            out.note(format!("tls = true there means the files of {CA}, and here those of storage_dir."));
            let issued = |end: &str| Value::from(format!("{CA}/issued/{name}.{end}"));
            Map::from_iter([
                ("ca_path".to_owned(), format!("{CA}/intermediate/ca-chain.pem").into()),
                ("cert_path".to_owned(), issued("crt")),
                ("key_path".to_owned(), issued("key")),
            ])
        }
        Some(Value::Object(paths)) => paths.clone(),
        Some(_) => return Err("mesh.tls is neither true nor a block of paths".to_owned()),
    };
    out.text.push_str("\n[agent_channel.tls]\n");
    let known = ["ca_path", "cert_path", "key_path"];
    for key in known {
        if let Some(value) = text(&paths, "mesh.tls", key)? {
            out.set(key, &value);
        }
    }
    leave_out(&paths, "mesh.tls", &known, out);
    Ok(())
}

fn discovery(mesh: &Map<String, Value>, out: &mut Out) -> Result<(), String> {
    let none = Map::new();
    let discovery = match mesh.get("discovery") {
        None | Some(Value::Null) => &none,
        Some(Value::Object(discovery)) => discovery,
        Some(_) => return Err("mesh.discovery is no block of keys".to_owned()),
    };
    if !discovery.is_empty() {
        out.text.push_str("\n[agent_channel.discovery]\n");
        let mode = text(discovery, "mesh.discovery", "mode")?;
        if let Some(mode) = &mode {
            out.set("mode", mode);
        }
        let is_seed = mode.as_ref().is_some_and(|mode| mode == "seed");
        for key in ["seed_host", "seed_port"] {
            let value = if key == "seed_host" {
                text(discovery, "mesh.discovery", key)?
            } else {
                number(discovery, "mesh.discovery", key)?
            };
            match value {
                Some(value) if is_seed => out.set(key, &value),
                Some(_) => out.note(format!("{key} is left out: only mode \"seed\" asks a seed.")),
                None => {}
            }
        }
        if is_seed && !discovery.contains_key("seed_port") {
            out.note(
                "seed_port is 3000 here, the port of every agent channel; 3100 is its default there."
                    .to_owned(),
            );
        }
        leave_out(discovery, "mesh.discovery", &["mode", "seed_host", "seed_port", "peers"], out);
    }
    let listed = [("mesh.peers", mesh.get("peers")), ("mesh.discovery.peers", discovery.get("peers"))];
    for (at, peers) in listed {
        let peers = match peers {
            None | Some(Value::Null) => continue,
            Some(Value::Array(peers)) => peers,
            Some(_) => return Err(format!("{at} is no list")),
        };
        for peer in peers {
            let Value::Object(peer) = peer else {
                return Err(format!("an entry of {at} is no block of keys"));
            };
            out.text.push_str("\n[[agent_channel.discovery.peers]]\n");
            for key in ["name", "host"] {
                out.set(key, &text(peer, at, key)?.ok_or_else(|| format!("an entry of {at} has no {key}"))?);
            }
            if let Some(port) = number(peer, at, "port")? {
                out.set("port", &port);
            }
            leave_out(peer, at, &["name", "host", "port"], out);
        }
    }
    Ok(())
}

fn leave_out(block: &Map<String, Value>, at: &str, known: &[&str], out: &mut Out) {
    for key in block.keys().filter(|key| !known.contains(&key.as_str())) {
        let key: String = key.chars().map(|c| if c.is_control() { '?' } else { c }).collect();
        out.note(format!("{at}.{key} is left out: this node does not know it."));
    }
}

fn flag(block: &Map<String, Value>, at: &str, key: &str) -> Result<Option<bool>, String> {
    match block.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Bool(flag)) => Ok(Some(*flag)),
        Some(_) => Err(format!("{at}.{key} is neither true nor false")),
    }
}

fn number(block: &Map<String, Value>, at: &str, key: &str) -> Result<Option<Value>, String> {
    match block.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(value) if value.is_u64() => Ok(Some(value.clone())),
        Some(_) => Err(format!("{at}.{key} is no whole number")),
    }
}

/// A text. Numbers are texts to whoever names a node `110`.
fn text(block: &Map<String, Value>, at: &str, key: &str) -> Result<Option<Value>, String> {
    match block.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.as_str().into())),
        Some(Value::Number(number)) => Ok(Some(number.to_string().into())),
        Some(_) => Err(format!("{at}.{key} is no text")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEED: &str = "\
mesh:
  enabled: true
  node_name: ct110 # must match the cert CN
  tls: true # use /rivet-shared/rivet-ca/issued/<node_name>.{crt,key}
  agent_channel_port: 3000
  storage_dir: /rivet-shared
  heartbeat_interval_ms: 30000
  stale_threshold_ms: 90000
  discovery:
    mode: seed
    seed_host: ct110.mesh # use .mesh hostname — matches cert SAN
    seed_port: 3000
";
    const PATHS: &str = "\
mesh:
  enabled: true
  node_name: ct110
  tls:
    ca_path: /rivet-shared/rivet-ca/intermediate/ca-chain.pem
    cert_path: /rivet-shared/rivet-ca/issued/ct110.crt
    key_path: /rivet-shared/rivet-ca/issued/ct110.key
";

    #[test]
    fn both_samples_of_that_systems_documentation_come_out_as_they_were() {
        let seed = convert(SEED).expect("converts");
        assert_eq!(
            seed.toml,
            "# Imported by `qmt-cli config import`.\n[agent_channel]\nenabled = true\nnode_name = \"ct110\"\n\
             storage_dir = \"/rivet-shared\"\nagent_channel_port = 3000\nheartbeat_interval_ms = 30000\n\
             stale_threshold_ms = 90000\ntls = true\n\n[agent_channel.discovery]\nmode = \"seed\"\n\
             seed_host = \"ct110.mesh\"\nseed_port = 3000\n"
        );
        assert_eq!(seed.notes, Vec::<String>::new());
        let paths = convert(PATHS).expect("converts");
        assert_eq!(
            paths.toml,
            "# Imported by `qmt-cli config import`.\n[agent_channel]\nenabled = true\nnode_name = \"ct110\"\n\n\
             [agent_channel.tls]\nca_path = \"/rivet-shared/rivet-ca/intermediate/ca-chain.pem\"\n\
             cert_path = \"/rivet-shared/rivet-ca/issued/ct110.crt\"\nkey_path = \"/rivet-shared/rivet-ca/issued/ct110.key\"\n"
        );
    }

    #[test]
    fn what_changes_is_said() {
        let yaml = "runtime: {}\nmesh:\n  enabled: true\n  node_name: a\n  tls: true\n  storage_dir: /elsewhere\n  secret: x\n  \
            colour: red\n  peers:\n    - {name: b, host: 10.0.0.2}\n  discovery: {mode: static, seed_host: c}\n";
        let imported = convert(yaml).expect("converts");
        let told = imported.notes.join("\n");
        for what in [
            "secret is left out",
            "mesh.colour is left out",
            "tls = true there means",
            "seed_host is left out",
        ] {
            assert!(told.contains(what), "{what}: {told}");
        }
        for line in [
            "cert_path = \"/rivet-shared/rivet-ca/issued/a.crt\"",
            "[[agent_channel.discovery.peers]]\nname = \"b\"\nhost = \"10.0.0.2\"",
        ] {
            assert!(imported.toml.contains(line), "{}", imported.toml);
        }
        let off = convert("mesh:\n  enabled: true\n  discovery: {mode: seed, seed_host: c.mesh}\n")
            .expect("converts");
        assert!(off.toml.contains("tls = true") && off.notes.len() == 2, "{:?}", off.notes);
    }

    #[test]
    fn what_cannot_be_meant_is_refused_with_its_place() {
        for (yaml, why) in [
            ("a: [", "it is no YAML"),
            ("models: []", "it has no mesh: block"),
            ("mesh: 3", "mesh: is no block"),
            ("mesh: {tls: 4}", "mesh.tls is neither"),
            ("mesh: {enabled: maybe}", "mesh.enabled is neither"),
            ("mesh: {agent_channel_port: -1}", "mesh.agent_channel_port is no whole number"),
            ("mesh: {tls: true, peers: [{name: a}]}", "an entry of mesh.peers has no host"),
        ] {
            let error = convert(yaml).err().unwrap_or_else(|| panic!("{yaml} was taken"));
            assert!(error.contains(why), "{error}");
        }
    }
}
