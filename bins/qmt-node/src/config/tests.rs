use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Parser;
use mesh_identity::{Authority, Founding, InviteOptions, NodeAddr, NodeKey, UnixTime};

use super::reader::Document;
use super::*;
use crate::cli::Cli;

const PEER_ID: &str = "12D3KooWGQmdpzHXCqLno4mMxWXKNFQHASBeF99gTm2JR8Vu5Bdc";

fn token() -> String {
    let key = NodeKey::from_seed([3; 32]);
    let root = Founding::new(&key).root;
    let options = InviteOptions { hints: NodeAddr::default(), ..InviteOptions::default() };
    Authority::founder(key, root)
        .expect("own root")
        .issue_invite(&options, UnixTime::now())
        .expect("issues")
        .to_string()
}

/// Loads `text` as the file, with `INVITE` and `NAME` set.
fn read(text: &str, flags: &[&str]) -> Result<Config, ConfigError> {
    read_with(text, flags, &[])
}

fn read_with(text: &str, flags: &[&str], more: &[(&str, &str)]) -> Result<Config, ConfigError> {
    let folder = tempfile::tempdir().expect("temporary folder");
    let home = folder.path().join("home");
    std::fs::create_dir(&home).expect("folder");
    std::fs::write(home.join("config.toml"), text).expect("writes");
    let cli = Cli::try_parse_from(["qmt-node"].iter().chain(flags)).expect("flags");
    let vars = [
        ("QMT_HOME", home.to_str().expect("text")),
        ("HOME", "/home/ann"),
        ("INVITE", &token()),
        ("NAME", "ann"),
        ("EMPTY", ""),
    ];
    let vars = vars.iter().chain(more).map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    load(&cli, &Environment { vars, cwd: PathBuf::from("/work") })
}

/// The faults, with the folder of the file cut off.
fn faults(text: &str, flags: &[&str]) -> Vec<String> {
    let error = match read(text, flags) {
        Ok(_) => return Vec::new(),
        Err(error) => error.to_string(),
    };
    error
        .lines()
        .map(|line| line.split_once("/home/config.toml:").map_or(line, |(_, rest)| rest).to_owned())
        .collect()
}

#[test]
fn every_fault_names_key_line_and_what_would_be_right() {
    let cases: &[(&str, &str)] = &[
        (
            "[mesh]\nenabled = true\n[[mesh.peers]]\naddr = \"/ip4/10.0.0.1/tcp/9000\"\nrequest_timeout_secs = 300\n",
            "5: unknown key \"request_timeout_secs\" in [[mesh.peers]]; it belongs into [mesh], above the first [[mesh.peers]]",
        ),
        ("[mesh]\nenabeld = true\n", "2: unknown key \"enabeld\" in [mesh]; did you mean \"enabled\"?"),
        (
            "\nenabled = true\n",
            "2: unknown key \"enabled\" in the top of the file; it belongs into [mesh] or [mesh.lan] or [[mesh.iroh]] or [console] or [relay] or [agent_channel]",
        ),
        (
            "[mesh]\nbind_port = 1\n",
            "2: unknown key \"bind_port\" in [mesh]; it belongs into [mesh.internet]",
        ),
        (
            "[[mesh.peers]]\naddr = \"/ip4/10.0.0.1/tcp/9000\"\nrole = \"member\"\n",
            "3: role in [[mesh.peers]] needs id (or /p2p/ID behind addr): an address alone proves nothing",
        ),
        (
            "[mesh.lan]\nenabled = true\npsk = \"short\"\n",
            "3: psk in [mesh.lan] is too short to be a secret: write at least 12 characters, such as four random words",
        ),
        ("[mehs]\nenabled = true\n", "1: unknown key \"mehs\" in the top of the file; did you mean [mesh]?"),
        (
            "[api]\ncolour = 1\n",
            "2: unknown key \"colour\" in [api]; known here: port, bind, api_key, continue_timeout_secs, make_replicas, \
             keep_replicas",
        ),
        ("[mesh.peers]\nname = \"a\"\n", "1: peers is written [[mesh.peers]]"),
        ("[[mesh.lan]]\n", "1: lan is written [mesh.lan]"),
        ("mesh = 1\n", "1: mesh must be a table, written [mesh], not 1"),
        ("[mesh]\nenabled = \"yes\"\n", "2: enabled in [mesh] must be true or false, not a string"),
        (
            "[mesh]\nrequest_timeout_secs = 0\n",
            "2: request_timeout_secs in [mesh] must be a whole number from 1 to 86400, not 0",
        ),
        (
            "[mesh]\nrequest_timeout_secs = -1\n",
            "2: request_timeout_secs in [mesh] must be a whole number from 1 to 86400, not -1",
        ),
        (
            "[mesh]\ntransport = \"wifi\"\n",
            "2: transport in [mesh] must be \"lan\" or \"iroh\", not \"wifi\"",
        ),
        (
            "[mesh]\nnode_name = \"${MISSING}\"\n",
            "2: node_name in [mesh]: the variable MISSING is not set (set it, or write ${MISSING:-default})",
        ),
        (
            "[mesh]\nnode_name = \"${EMPTY}\"\n",
            "2: node_name in [mesh]: the variable EMPTY is not set (set it, or write ${EMPTY:-default})",
        ),
        ("[mesh]\nnode_name = \"${OPEN\"\n", "2: node_name in [mesh]: a ${ has no closing }"),
        (
            "[mesh]\nnode_name = \"a b\"\n",
            "2: node_name in [mesh] must be 1 to 63 of the characters A-Z a-z 0-9 . _ -, not that text",
        ),
        (
            "[mesh]\nlisten = \"0.0.0.0:9000\"\n",
            "2: listen in [mesh] must be an address such as /ip4/0.0.0.0/tcp/9000 or /ip6/::/udp/9000/quic-v1, not \"0.0.0.0:9000\"",
        ),
        (
            "[mesh]\ncapabilities = [\"gpu\",\n 5]\n",
            "2: capabilities in [mesh] must be a list of strings, not one with 5",
        ),
        ("[mesh]\ninvite = \"hello\"\n", "2: invite in [mesh]: "),
        ("[[mesh.peers]]\nname = \"a\"\n", "1: [[mesh.peers]] needs addr or id"),
        (
            "[mesh]\ntransport = \"iroh\"\n[mesh.lan]\nenabled = true\n",
            "2: transport = \"iroh\" in [mesh] contradicts enabled = true in [mesh.lan]; drop one of them",
        ),
        (
            "[mesh]\ntransport = \"lan\"\n[[mesh.iroh]]\nenabled = true\nname = \"a\"\n",
            "2: transport = \"lan\" in [mesh] contradicts [[mesh.iroh]]; drop transport, and write [mesh.lan] enabled = true for the LAN",
        ),
        (
            "[mesh]\ninvite = \"${INVITE}\"\n[[mesh.iroh]]\nenabled = true\nname = \"a\"\n",
            "2: invite in [mesh] is superseded by [[mesh.iroh]] (line 3); move it into a [[mesh.iroh]] entry of its own",
        ),
        (
            "[[mesh.iroh]]\nenabled = true\n",
            "1: [[mesh.iroh]] needs an invite to join by, or the name of a scope to found",
        ),
        (
            "[mesh.internet]\nrelay_mode = \"custom\"\n",
            "2: relay_mode = \"custom\" in [mesh.internet] needs relay_urls",
        ),
        (
            "[mesh.internet]\nrelay_urls = [\"https://r.example\"]\nrelay_mode = \"disabled\"\n",
            "3: relay_mode = \"disabled\" in [mesh.internet] contradicts relay_urls; write relay_mode = \"custom\" or drop it",
        ),
        (
            "[mesh.internet]\nrelay_urls = [\"r.example\"]\n",
            "2: relay_urls in [mesh.internet] must be a list, each entry a relay's URL such as https://relay.example.org, not \"r.example\"",
        ),
        (
            "[mesh.internet]\nbind_port = 70000\n",
            "2: bind_port in [mesh.internet] must be a whole number from 0 to 65535, not 70000",
        ),
        (
            "[inference]\nmax_vram = 0\n",
            "2: max_vram in [inference] must be a number of GB (10^9 bytes) above 0, not 0",
        ),
        ("[inference]\ndraft = 3\n", "2: draft in [inference] must be a path, true or false, not 3"),
        (
            "[inference]\ntensor_split = \"a,b\"\n",
            "2: tensor_split in [inference] must be shares such as \"3,1\", not that text",
        ),
        ("[[providers]]\nkind = \"openai\"\n", "1: [[providers]] needs name"),
        (
            "[[providers]]\nname = \"a\"\n[[providers]]\nname = \"a\"\n",
            "4: name \"a\" in [[providers]] is taken by the entry of line 1",
        ),
        (
            "[[providers]]\nname = \"a\"\napi_key_env = \"NO_KEY\"\n",
            "3: api_key_env in [[providers]]: the variable NO_KEY is not set",
        ),
        (
            "[[providers]]\nname = \"a\"\nbase_url = \"localhost\"\n",
            "3: base_url in [[providers]] must be an http or https URL such as http://127.0.0.1:8000/v1, not that text",
        ),
        (
            "[[providers]]\nname = \"a\"\nshare = \"all\"\n",
            "3: share in [[providers]] must be \"none\" or \"members\" or \"clients\", not \"all\"",
        ),
        ("[api]\nbind = \"0.0.0.0\"\n", "2: bind in [api] is not loopback, which needs api_key"),
        (
            "[agent_channel]\nenabled = true\n",
            "1: [agent_channel] needs tls = true or a table [agent_channel.tls]",
        ),
        (
            "[agent_channel]\ntls = false\n",
            "2: tls in [agent_channel] cannot be false: there is no plaintext channel",
        ),
        (
            "[agent_channel.discovery]\nmode = \"seed\"\n",
            "2: mode = \"seed\" in [agent_channel.discovery] needs seed_host",
        ),
        (
            "[agent_channel.discovery]\nseed_host = \"ct110.mesh\"\n",
            "2: seed_host in [agent_channel.discovery] is asked only with mode = \"seed\"",
        ),
        (
            "[agent_channel.discovery]\nmode = \"seed\"\nseed_host = \"https://ct110.mesh:3000\"\n",
            "3: seed_host in [agent_channel.discovery] must be an IP address or a host name without scheme and port, not \"https://ct110.mesh:3000\"",
        ),
        (
            "[agent_channel]\nnode_name = \"ct 110\"\n",
            "2: node_name in [agent_channel] must be 1 to 63 of the characters A-Z a-z 0-9 . _ -, as in the node's certificate, not \"ct 110\"",
        ),
        (
            "[agent_channel]\nbind = \"localhost\"\n",
            "2: bind in [agent_channel] must be an IP address, not \"localhost\"",
        ),
        (
            "[agent_channel]\nheartbeat_interval_ms = 90000\n",
            "2: stale_threshold_ms in [agent_channel] is 90000 and must be longer than heartbeat_interval_ms, which is 90000",
        ),
        (
            "[agent_channel.tls]\ncert_path = \"a\"\n",
            "1: [agent_channel.tls] needs both cert_path and key_path, or neither",
        ),
        (
            "[agent_channel]\nnode_name = \"a\"\n[[agent_channel.discovery.peers]]\nname = \"a\"\nhost = \"h\"\n",
            "4: [[agent_channel.discovery.peers]] a is this node itself",
        ),
        (
            "[[agent_channel.discovery.peers]]\nname = \"a\"\nport = 1\n",
            "1: [[agent_channel.discovery.peers]] needs host",
        ),
        ("[relay]\ntls_cert = \"a\"\n", "1: [relay] needs both tls_cert and tls_key, or neither"),
        ("[mesh\n", "1: "),
        ("[mesh]\nenabled = true\nenabled = false\n", "3: duplicate key"),
    ];
    for (text, message) in cases {
        let found = faults(text, &[]);
        let ok = if message.ends_with(": ")
            || message.contains("drop one of them")
            || message.contains("duplicate")
        {
            found.len() == 1 && found[0].starts_with(message)
        } else {
            found == [*message]
        };
        assert!(ok, "{text}\n  expected {message}\n  got {found:#?}");
    }
}

#[test]
fn wrong_flags_are_named() {
    let cases: &[(&[&str], &str)] = &[
        (&["--mesh=192.168.1.1"], "--mesh: must be an address such as"),
        (&["--peer", "host:9000"], "--peer: must be an address such as"),
        (&["--mesh-invite", "--invite-ttl", "7x"], "--invite-ttl: not a time to live: \"7x\""),
        (&["--join", "nonsense"], "--mesh-join: "),
        (&["--max-vram", "-1"], "--max-vram: must be a number of GB (10^9 bytes) above 0, not -1"),
        (&["--console=x"], "--console: must be a port from 0 to 65535, not \"x\""),
        (&["--relay", "ftp://x"], "--relay: must be a relay's URL such as https://relay.example.org"),
        (&["--node-name", "a b"], "--node-name: must be 1 to 63"),
    ];
    for (flags, message) in cases {
        let flags: Vec<String> = flags.windows(2).fold(vec![flags[0].to_owned()], |mut all, pair| {
            all.push(pair[1].to_owned());
            all
        });
        let flags: Vec<String> =
            if flags.len() == 2 && flags[1].starts_with('-') && !flags[1].starts_with("--") {
                vec![flags.join("=")]
            } else {
                flags
            };
        let found = faults("", &flags.iter().map(String::as_str).collect::<Vec<_>>());
        assert!(found.len() == 1 && found[0].starts_with(message), "{flags:?}: {found:?}");
    }
    let error = read_with("", &[], &[("QMT_EPHEMERAL_KEY", "maybe")]).expect_err("neither yes nor no");
    assert_eq!(error.to_string(), "QMT_EPHEMERAL_KEY: must be 1 or 0");
    assert!(Cli::try_parse_from(["qmt-node", "--client", "--model", "m"]).is_err());
    assert!(Cli::try_parse_from(["qmt-node", "--invite-uses", "3"]).is_err(), "needs --mesh-invite");
}

#[test]
fn all_faults_are_told_at_once_in_the_order_of_the_file() {
    let text = "[api]\nport = \"x\"\n[mesh]\nenabled = 1\nlisten = 2\n";
    let lines: Vec<String> = faults(text, &["--max-vram=0"])
        .iter()
        .map(|fault| fault.split(':').next().unwrap_or_default().to_owned())
        .collect();
    assert_eq!(lines, ["2", "4", "5", "--max-vram"]);
}

#[test]
fn without_file_and_flags_the_defaults_hold() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let vars = BTreeMap::from([("HOME".to_owned(), folder.path().display().to_string())]);
    let environment = Environment { vars, cwd: PathBuf::from("/work") };
    let config = load(&Cli::default(), &environment).expect("loads");
    assert_eq!((config.home.as_path(), &config.file), (folder.path().join(".qmt").as_path(), &None));
    assert_eq!(config.identity, Identity::File(folder.path().join(".qmt/mesh_identity.key")));
    assert_eq!(
        (config.mesh.enabled, config.mesh.request_timeout, config.mesh.stream_grace),
        (None, Duration::from_secs(300), Duration::from_secs(120))
    );
    assert_eq!(config.mesh.internet, Internet::default());
    assert_eq!(config.gateway.continue_timeout, Duration::from_secs(60));
    assert!(config.gateway.make_replicas && config.gateway.keep_replicas);
    assert_eq!(config.gateway.listener, Listener { addr: ([127, 0, 0, 1], 9337).into(), asked: false });
    assert_eq!(config.inference.model_dirs, [folder.path().join(".models")]);
    assert!(
        config.console.is_none() && config.mesh.lan.is_none() && config.warnings.is_empty(),
        "{:?}",
        config.warnings
    );
    let asked = Cli { config: Some("missing.toml".into()), ..Cli::default() };
    let error = load(&asked, &environment).expect_err("asked for and missing");
    assert_eq!(error.to_string(), "cannot read the configuration /work/missing.toml");
    let error = load(&Cli::default(), &Environment::default()).expect_err("no home");
    assert!(matches!(error, ConfigError::NoHome(_)));
}

#[test]
fn strings_expand_and_relative_paths_start_at_the_file() {
    let text = "[mesh]\nnode_name = \"${NAME}-${SHELL_TYPE:-box}\"\nidentity_file = \"keys/${NAME}.key\"\ninvite = \"${NOT_SET:-}\"\n\
        [inference]\nmodel_dirs = [\"~/.models\", \"more\"]\nmodels = [\"qwen\", \"./a.gguf\", \"org/repo/file.gguf\"]\nbin_dir = \"~\"\n";
    let config = read(text, &[]).expect("loads");
    assert_eq!(config.node_name.as_str(), "ann-box");
    assert_eq!(config.identity, Identity::File(config.home.join("keys/ann.key")));
    assert!(config.mesh.scopes.is_empty());
    assert_eq!(config.inference.model_dirs, [PathBuf::from("/home/ann/.models"), config.home.join("more")]);
    assert_eq!(
        config.inference.models,
        [
            "qwen".to_owned(),
            config.home.join("./a.gguf").display().to_string(),
            "org/repo/file.gguf".to_owned()
        ]
    );
    assert_eq!(config.inference.bin_dir.as_deref(), Some(Path::new("/home/ann")));
}

#[test]
fn flags_override_the_file() {
    let text = "[mesh]\nnode_name = \"file\"\n[mesh.internet]\nbind_port = 1\nrelay_urls = [\"https://a.example\"]\n\
        [inference]\nmodels = [\"a\"]\nmax_vram = 1\n[api]\nport = 2\ncontinue_timeout_secs = 5\nmake_replicas = false\n[console]\nport = 3\n[log]\nformat = \"text\"\n";
    let flags = [
        "--node-name",
        "flag",
        "--bind-port",
        "4433",
        "--relay",
        "http://b.example:3340",
        "--model",
        "b",
        "--model",
        "./c.gguf",
        "--max-vram",
        "2.5",
        "--port",
        "0",
        "--console=5",
        "--log-format",
        "json",
        "--bin-dir",
        "bin",
        "--no-draft",
    ];
    let config = read(text, &flags).expect("loads");
    assert_eq!(config.node_name.as_str(), "flag");
    assert_eq!(config.mesh.internet.bind_port, Some(4433));
    assert_eq!(config.mesh.internet.relays, Relays::Custom(vec!["http://b.example:3340".into()]));
    assert_eq!(config.inference.models, ["b", "/work/./c.gguf"]);
    assert_eq!(
        (config.inference.max_vram_bytes, &config.inference.draft),
        (Some(2_500_000_000), &Draft::Off)
    );
    assert_eq!(config.gateway.continue_timeout, Duration::from_secs(5));
    assert!(!config.gateway.make_replicas && config.gateway.keep_replicas);
    assert_eq!(config.gateway.listener, Listener { addr: ([127, 0, 0, 1], 0).into(), asked: true });
    assert_eq!(config.console, Some(Listener { addr: ([127, 0, 0, 1], 5).into(), asked: true }));
    assert_eq!(config.log_format, LogFormat::Json);
    assert_eq!(config.inference.bin_dir, Some("/work/bin".into()));
}

#[test]
fn an_invite_joins_whatever_the_transport() {
    let config = read("[mesh]\nenabled = true\ninvite = \"${INVITE}\"\n", &[]).expect("loads");
    assert_eq!(config.mesh.scopes.len(), 1);
    assert!(config.mesh.lan.is_none(), "the transport was not named: the invite's is taken");
    let config =
        read("[mesh]\nenabled = true\ntransport = \"lan\"\ninvite = \"qmt://mesh/join/${INVITE}\"\n", &[])
            .expect("loads");
    assert!(config.mesh.scopes.len() == 1 && config.mesh.lan.is_some());
    let config = read("[mesh]\ninvite = \"${INVITE}\"\n", &[]).expect("loads");
    assert_eq!(config.mesh.enabled, Some(true));
    let token = token();
    let config = read("", &["--mesh-join", &token, "--join", &token]).expect("loads");
    assert_eq!((config.mesh.scopes.len(), config.mesh.enabled, config.warnings.len()), (2, Some(true), 0));
    assert!(!format!("{config:?}").contains(&token), "invites are never logged");
}

#[test]
fn scopes_have_names_and_relays_of_their_own() {
    let text = "[mesh]\nenabled = true\n[mesh.lan]\nenabled = true\nlisten = \"/ip4/0.0.0.0/tcp/9001\"\ntrust = \"open\"\n\
        [[mesh.iroh]]\nenabled = true\nname = \"team\"\ninvite = \"${INVITE}\"\nrelay_mode = \"default\"\n\
        [[mesh.iroh]]\nenabled = true\nname = \"mine\"\n[[mesh.iroh]]\nenabled = false\nname = \"off\"\n";
    let config = read(text, &[]).expect("loads");
    let scopes: Vec<_> = config
        .mesh
        .scopes
        .iter()
        .map(|scope| (scope.name.as_deref(), scope.invite.is_some(), &scope.relays))
        .collect();
    assert_eq!(scopes, [(Some("team"), true, &Some(Relays::Public)), (Some("mine"), false, &None)]);
    let lan = config.mesh.lan.expect("on");
    assert_eq!((lan.listen.to_string().as_str(), lan.trust), ("/ip4/0.0.0.0/tcp/9001", Trust::Open));
    assert_eq!(config.mesh.internet.relays, Relays::OfMembers);
}

#[test]
fn a_founding_invite_is_asked_for_by_flags() {
    let config = read("", &["--mesh-invite=My Agent Mesh", "--invite-ttl", "never", "--invite-uses", "0"])
        .expect("loads");
    let wanted = FoundingInvite { name: Some("My Agent Mesh".into()), ttl: None, uses: 0 };
    assert_eq!((config.mesh.invite, config.mesh.enabled), (Some(wanted), Some(true)));
    let config = read("", &["--mesh-invite"]).expect("loads");
    let wanted = FoundingInvite { name: None, ttl: Some(Duration::from_secs(86_400)), uses: 1 };
    assert_eq!(config.mesh.invite, Some(wanted));
}

#[test]
fn the_seeds_quic_address_is_mended_with_a_warning() {
    let config = read("[mesh]\nenabled = true\nlisten = \"/udp/9000/quic\"\n", &[]).expect("loads");
    assert_eq!(
        config.mesh.lan.as_ref().map(|lan| lan.listen.to_string()).as_deref(),
        Some("/ip4/0.0.0.0/udp/9000/quic-v1")
    );
    let mended = "\"/udp/9000/quic\" is no valid address; it is read as \"/ip4/0.0.0.0/udp/9000/quic-v1\"";
    assert!(
        config.warnings.iter().any(|warning| warning.ends_with(&format!("config.toml:3: {mended}"))),
        "{:?}",
        config.warnings
    );
    let config = read("", &["--mesh=/udp/9000/quic"]).expect("loads");
    assert!(config.warnings.contains(&format!("--mesh: {mended}")), "{:?}", config.warnings);
    let config = read("", &["--mesh"]).expect("loads");
    assert_eq!(config.mesh.lan.map(|lan| lan.listen.to_string()).as_deref(), Some("/ip4/0.0.0.0/tcp/9000"));
}

#[test]
fn peers_take_ip4_ip6_dns_and_ids() {
    let text = format!(
        "[[mesh.peers]]\nname = \"a\"\naddr = \"/ip4/192.168.1.100/tcp/9000/p2p/{PEER_ID}\"\n[[mesh.peers]]\naddr = \"/ip6/::1/udp/1/quic-v1\"\n\
         [[mesh.peers]]\naddr = \"/dns/gpu.local/tcp/9000\"\nid = \"{PEER_ID}\"\nrole = \"member\"\n[[mesh.peers]]\nid = \"{PEER_ID}\"\n"
    );
    let config = read(&text, &["--peer", "/dns4/x.example/tcp/1"]);
    let config = config.expect("loads");
    let peers: Vec<_> = config
        .mesh
        .peers
        .iter()
        .map(|peer| (peer.addr.as_ref().map(ToString::to_string), peer.id.is_some()))
        .collect();
    let addr = |text: &str| Some(text.to_owned());
    assert_eq!(
        peers,
        [
            (addr("/ip4/192.168.1.100/tcp/9000"), true),
            (addr("/ip6/::1/udp/1/quic-v1"), false),
            (addr("/dns/gpu.local/tcp/9000"), true),
            (None, true),
            (addr("/dns4/x.example/tcp/1"), false)
        ]
    );
}

#[test]
fn what_is_acted_on_is_not_warned_of() {
    let text = "[mesh]\nenabled = true\n[console]\nport = 3132\n[inference]\nsplit = true\n[[providers]]\nname = \"claude\"\nkind = \"anthropic\"\n";
    let config = read(text, &["--console"]).expect("loads");
    assert_eq!(config.warnings, Vec::<String>::new());
}

#[test]
fn times_of_placing_are_seconds_with_a_bound() {
    let config =
        read("[inference]\ndebounce_secs = 0.25\npatience_secs = 5\nlend = false\n", &[]).expect("loads");
    let times = config.inference.election;
    assert_eq!((times.debounce, times.patience), (Duration::from_millis(250), Duration::from_secs(5)));
    assert_eq!(times.left_out_for, Duration::from_secs(30));
    assert!(!config.inference.lend && config.inference.assign);
    for seconds in ["-1", "3601", "nan", "\"2\""] {
        let error =
            read(&format!("[inference]\ndebounce_secs = {seconds}\n"), &[]).expect_err("refused").to_string();
        assert!(error.contains("debounce_secs"), "{error}");
    }
}

#[test]
fn identity_can_be_thrown_away() {
    let config = read_with("", &[], &[("QMT_EPHEMERAL_KEY", "1")]).expect("loads");
    assert_eq!(config.identity, Identity::Ephemeral);
    let config = read("[inference]\nmodels = [\"a\"]\n", &["--client"]).expect("loads");
    assert!(config.client && config.identity == Identity::Ephemeral && config.inference.models.is_empty());
}

#[test]
fn provider_keys_come_from_the_environment_and_stay_out_of_logs() {
    let text = "[[providers]]\nname = \"vllm\"\nbase_url = \"http://10.0.0.5:8000/v1\"\napi_key_env = \"KEY\"\nmodels = [\"m\"]\nshare = \"clients\"\n[[providers]]\nname = \"claude\"\nkind = \"anthropic\"\n";
    let config = read_with(text, &[], &[("KEY", "hush-hush")]).expect("loads");
    assert_eq!(
        config.providers[0].api_key.as_ref().map(|key| key.expose().to_owned()).as_deref(),
        Some("hush-hush")
    );
    assert_eq!(
        (config.providers[0].share, config.providers[1].kind),
        (Share::Clients, ProviderKind::Anthropic)
    );
    assert_eq!(config.providers[1].base_url.to_string(), "https://api.anthropic.com/v1");
    assert!(!format!("{config:?}").contains("hush-hush"));
}

#[test]
fn a_providers_quota_and_prices_are_read_and_checked() {
    let text = "[[providers]]\nname = \"claude\"\nrequests_per_minute = 20\ntokens_per_day = 200_000\ninput_price = 3\noutput_price = 15.5\ncached_price = 0.3\n";
    let config = read(text, &[]).expect("loads");
    let quota = config.providers[0].quota;
    assert_eq!(quota.requests_per_minute.map(NonZeroU64::get), Some(20));
    assert_eq!(quota.tokens_per_day.map(NonZeroU64::get), Some(200_000));
    assert_eq!(config.providers[0].price, Some(Price { input: 3.0, output: 15.5, cached: Some(0.3) }));
    for (line, why) in [
        ("requests_per_minute = 0", "requests_per_minute in [[providers]] must be a whole number from 1"),
        ("input_price = 3", "input_price in [[providers]] needs output_price beside it"),
        ("cached_price = 1", "cached_price in [[providers]] needs input_price beside it"),
        (
            "input_price = 1\noutput_price = -1",
            "output_price in [[providers]] must be a price of a million tokens",
        ),
        (
            "input_price = nan\noutput_price = 1",
            "input_price in [[providers]] must be a price of a million tokens",
        ),
    ] {
        let error =
            read(&format!("[[providers]]\nname = \"a\"\n{line}\n"), &[]).expect_err("refused").to_string();
        assert!(error.contains(why), "{error}");
    }
}

#[test]
fn the_agent_channel_speaks_the_seeds_words() {
    let text = "[agent_channel]\nenabled = true\nnode_name = \"ct110\"\ntls = true\nagent_channel_port = 3000\nstorage_dir = \"/rivet-shared\"\nsecret = \"x\"\n\
        [agent_channel.discovery]\nmode = \"seed\"\nseed_host = \"ct110.mesh\"\n";
    let config = read(text, &[]).expect("loads");
    let channel = config.agent_channel.expect("on");
    assert_eq!(channel.tls.cert_path, Path::new("/rivet-shared/rivet-ca/issued/ct110.crt"));
    assert_eq!(channel.tls.ca_path, Path::new("/rivet-shared/rivet-ca/intermediate/ca-chain.pem"));
    assert!(!channel.tls.asked, "the paths of tls = true are no wish of anybody's");
    assert_eq!(channel.listener, Listener { addr: "0.0.0.0:3000".parse().expect("address"), asked: true });
    assert_eq!(channel.ca_dir, config.home.join("ca"));
    assert_eq!((channel.heartbeat.as_secs(), channel.stale.as_secs()), (30, 90));
    assert_eq!(channel.discovery, ChannelDiscovery::Seed { host: "ct110.mesh".into(), port: 3000 });
    assert!(
        config.warnings.iter().any(|warning| warning.contains("secret in [agent_channel] is deprecated"))
    );
}

#[test]
fn the_agent_channel_takes_paths_peers_and_addresses() {
    let text = "[agent_channel]\nenabled = true\nnode_name = \"ct111\"\nbind = \"127.0.0.1\"\nhost = \"[fd00::7]\"\n\
        ca_dir = \"ca\"\nrole = \"client\"\nheartbeat_interval_ms = 500\nstale_threshold_ms = 1500\n\
        [agent_channel.tls]\nca_path = \"~/chain.pem\"\n\
        [agent_channel.discovery]\nmode = \"mdns\"\n\
        [[agent_channel.discovery.peers]]\nname = \"ct112\"\nhost = \"10.0.0.2\"\n\
        [[agent_channel.discovery.peers]]\nname = \"ct113\"\nhost = \"ct113.mesh\"\nport = 3100\n";
    let config = read(text, &[]).expect("loads");
    let channel = config.agent_channel.expect("on");
    assert_eq!(channel.listener, Listener { addr: "127.0.0.1:3000".parse().expect("address"), asked: false });
    assert_eq!(channel.host.as_deref(), Some("fd00::7"));
    assert!(channel.tls.asked && channel.tls.ca_path.ends_with("chain.pem"), "{:?}", channel.tls);
    assert_eq!(channel.tls.key_path, channel.ca_dir.join("issued/ct111.key"));
    assert_eq!(channel.role, Some(mesh_identity::Role::Client));
    assert_eq!((channel.heartbeat.as_millis(), channel.stale.as_millis()), (500, 1500));
    assert_eq!(channel.discovery, ChannelDiscovery::Mdns);
    let peers: Vec<String> =
        channel.peers.iter().map(|peer| format!("{} {} {}", peer.name, peer.host, peer.port)).collect();
    assert_eq!(peers, ["ct112 10.0.0.2 3000", "ct113 ct113.mesh 3100"]);
}

#[test]
fn agents_are_read_with_their_rules_and_servers() {
    let text = "[agent]\nworkspace = \"work\"\n[[agents]]\nid = \"coder\"\nmodel = \"qwen\"\ninstructions = \"Be brief.\"\n\
        tools = [\"read_file\", \"shell\"]\nopen_to = \"clients\"\ninterrupted = \"ask\"\nturn_tokens = 9\nturn_cost = 0.5\n\
        [[agents.policy]]\ntools = [\"shell\"]\narguments = { command = \"git *\" }\ncallers = [\"owner\"]\nthen = \"allow\"\n\
        [[agents.mcp]]\nname = \"files\"\ncommand = \"./server\"\nargs = [\"-v\"]\nenv = { MODE = \"${NAME}\" }\npass_env = [\"TOKEN\"]\n\
        [[agents.mcp]]\nname = \"far\"\nurl = \"https://example.org/mcp\"\nheaders = { X-Team = \"red\" }\ntoken_env = \"TOKEN\"\n\
        [[agents]]\nid = \"plain\"\nmodel = \"m\"\nworkspace = \"~/x\"\n\
        [[delegates]]\nid = \"worker\"\nmodel = \"m\"\npeer = \"gpu\"\ntools = [\"edit\"]\n\
        [[remote_agents]]\nid = \"far\"\npeer = \"gpu\"\n";
    let config = read_with(text, &[], &[("TOKEN", "hush-hush")]).expect("loads");
    let coder = &config.agents[0];
    assert_eq!((coder.id.as_str(), coder.model.as_str(), coder.open_to), ("coder", "qwen", OpenTo::Clients));
    assert_eq!(coder.tools, [BuiltIn::ReadFile, BuiltIn::Shell]);
    assert_eq!(coder.instructions, Instructions::Text("Be brief.".into()));
    assert_eq!((coder.limits.tokens, coder.limits.cost_micros), (Some(9), Some(500_000)));
    assert_eq!(coder.workspace, Some(config.home.join("work")));
    let rule = serde_json::to_value(&coder.policy).expect("JSON");
    let wanted = serde_json::json!([{
        "tools": ["shell"], "arguments": {"command": ["git *"]}, "callers": ["owner"], "then": "allow",
    }]);
    assert_eq!(rule, wanted);
    let ServerAt::Program(server) = &coder.servers[0].at else { panic!("{:?}", coder.servers) };
    assert_eq!(server.program, config.home.join("./server"));
    assert_eq!(server.environment, BTreeMap::from([("MODE".to_owned(), "ann".to_owned())]));
    assert_eq!(server.secrets[0].1.expose(), "hush-hush");
    assert!(server.confined && coder.confined && !coder.servers[0].trusts_hints);
    let ServerAt::Web { url, headers, token } = &coder.servers[1].at else { panic!("{:?}", coder.servers) };
    assert_eq!((url.as_str(), headers["X-Team"].as_str()), ("https://example.org/mcp", "red"));
    assert_eq!(token.as_ref().expect("a token").expose(), "hush-hush");
    assert_eq!(config.agents[1].workspace, Some("/home/ann/x".into()));
    let worker = &config.delegates[0];
    assert_eq!((worker.peer.as_deref(), worker.open_to), (Some("gpu"), OpenTo::Nobody));
    assert_eq!(config.remote_agents[0].id.as_str(), "far");
    assert_eq!(config.warnings, Vec::<String>::new());
    assert!(!format!("{config:?}").contains("hush-hush"));
}

#[test]
fn what_is_wrong_with_an_agent_is_told() {
    let agent = "[[agents]]\nid = \"a\"\nmodel = \"m\"\n";
    for (line, why) in [
        (
            "tools = [\"shel\"]",
            "4: tools in [[agents]] must be a list of read_file, write_file, edit, list, search, shell, delegate, board_read, board_post, not one with \"shel\"",
        ),
        (
            "open_to = \"all\"",
            "4: open_to in [[agents]] must be \"nobody\" or \"members\" or \"clients\", not \"all\"",
        ),
        ("temperature = 3", "4: temperature in [[agents]] must be a number from 0 to 2, not that number"),
        (
            "instructions = \"x\"\ninstructions_file = \"y\"",
            "5: [[agents]] takes instructions or instructions_file, not both",
        ),
        ("[[agents.policy]]\nthen = \"allow\"", "4: [[agents.policy]] needs tools"),
        (
            "[[agents.policy]]\ntools = [\"*\"]\nthen = \"allow\"\ncallers = [\"ann\"]",
            "7: callers in [[agents.policy]] must be a list of owner, member, client and ids of nodes, not one with \"ann\"",
        ),
        (
            "[[agents.policy]]\ntools = [\"*\"]\nthen = \"ask\"\narguments = { path = 3 }",
            "7: arguments in [[agents.policy]] must be a table of lists of strings, not one with 3",
        ),
        (
            "[[agents.mcp]]\nname = \"a b\"\ncommand = \"x\"",
            "5: name in [[agents.mcp]] must be 1 to 32 of the characters A-Z a-z 0-9 _ -, not that text",
        ),
        ("[[agents.mcp]]\nname = \"a\"", "4: [[agents.mcp]] needs command or url"),
        (
            "[[agents.mcp]]\nname = \"a\"\ncommand = \"x\"\nurl = \"http://x\"",
            "7: [[agents.mcp]] takes command or url, not both",
        ),
        (
            "[[agents.mcp]]\nname = \"a\"\nurl = \"ftp://x\"",
            "6: url in [[agents.mcp]] must be an address that begins with http:// or https://, not that text",
        ),
        (
            "[[agents.mcp]]\nname = \"a\"\nurl = \"http://x\"\nargs = [\"y\"]",
            "7: args in [[agents.mcp]] is for a server with command",
        ),
        (
            "[[agents.mcp]]\nname = \"a\"\nurl = \"http://x\"\ntoken_env = \"GONE\"",
            "7: token_env in [[agents.mcp]]: the variable GONE is not set",
        ),
        (
            "[[agents.mcp]]\nname = \"a\"\ncommand = \"x\"\npass_env = [\"GONE\"]",
            "7: pass_env in [[agents.mcp]]: the variable GONE is not set",
        ),
        (
            "[[delegates]]\nid = \"a\"\nmodel = \"m\"",
            "5: id \"a\" in [[delegates]] is taken by an agent of [[agents]]",
        ),
        (
            "[[agents]]\nid = \"x@y\"\nmodel = \"m\"",
            "5: id in [[agents]] must be 1 to 128 characters without @ and /, not that text",
        ),
    ] {
        assert_eq!(faults(&format!("{agent}{line}\n"), &[]), [why], "{line}");
    }
}

#[test]
fn every_key_of_the_schema_is_read() {
    let lists =
        schema::TABLES.iter().filter(|table| table.is_list).map(|table| format!("{}\n", table.head()));
    let text: String = lists.collect();
    let vars = BTreeMap::new();
    let document = Document::parse(Path::new("x"), &text, &vars);
    parse::apply(&document, &mut Config::at("/nowhere"));
    let known: BTreeSet<(&str, String)> = schema::TABLES
        .iter()
        .flat_map(|table| table.keys.iter().map(|key| (table.path, (*key).to_owned())))
        .collect();
    let asked = document.asked();
    assert_eq!(known.difference(&asked).collect::<Vec<_>>(), Vec::<&(&str, String)>::new());
}

#[test]
fn the_documentation_lists_each_key_and_flag() {
    let doc = include_str!("../../../../docs/configuration.md");
    for table in schema::TABLES.iter().filter(|table| !table.path.is_empty()) {
        let head = format!("### `{}`", table.head());
        let (_, section) = doc.split_once(&head).unwrap_or_else(|| panic!("no section {head}"));
        let section = section
            .split("\n### ")
            .next()
            .and_then(|section| section.split("\n## ").next())
            .expect("a first part");
        for key in table.keys {
            assert!(
                section.contains(&format!("| `{key}` |")),
                "{key} is not in the section of {}",
                table.head()
            );
        }
        let rows = section
            .lines()
            .filter_map(|line| line.strip_prefix("| `"))
            .filter_map(|line| line.split('`').next());
        for row in rows {
            assert!(table.keys.contains(&row), "{row} is documented in {} and not known", table.head());
        }
    }
    let command = <Cli as clap::CommandFactory>::command();
    for flag in command.get_arguments().filter_map(clap::Arg::get_long) {
        assert!(doc.contains(&format!("`--{flag}")), "--{flag} is not documented");
    }
}

/// What a table needs for its other keys to be read.
fn needed(table: &str) -> &'static [(&'static str, &'static str)] {
    match table {
        "mesh.peers" => &[("addr", "\"/ip4/10.0.0.1/tcp/9000\"")],
        "mesh.lan" | "mesh.iroh" | "relay" => &[("enabled", "true")],
        "agents" | "delegates" => &[("id", "\"a\""), ("model", "\"m\"")],
        "agents.policy" => &[("tools", "[\"shell\"]"), ("then", "\"ask\"")],
        "agents.mcp" => &[("name", "\"s\""), ("command", "\"/bin/true\"")],
        "remote_agents" => &[("id", "\"a\""), ("peer", "\"gpu\"")],
        "providers" => &[("name", "\"p\""), ("base_url", "\"http://127.0.0.1:1/v1\"")],
        "agent_channel" => &[("enabled", "true"), ("tls", "true"), ("node_name", "\"ct110\"")],
        "agent_channel.discovery" => &[("mode", "\"seed\""), ("seed_host", "\"ct111.mesh\"")],
        "agent_channel.discovery.peers" => &[("name", "\"ct112\""), ("host", "\"10.0.0.2\"")],
        _ => &[],
    }
}

/// A file with one table, those above it, and one more key in it.
fn with_key(table: &schema::Table, more: Option<(&str, &str)>) -> String {
    let mut text = String::new();
    for above in schema::TABLES.iter().filter(|one| table.path.starts_with(&format!("{}.", one.path))) {
        if above.path != "mesh" {
            text.push_str(&format!("{}\n", above.head()));
            needed(above.path).iter().for_each(|(key, value)| text.push_str(&format!("{key} = {value}\n")));
        }
    }
    text.push_str(&format!("{}\n", table.head()));
    let of_table =
        needed(table.path).iter().copied().filter(|(key, _)| more.is_none_or(|(more, _)| more != *key));
    of_table.chain(more).for_each(|(key, value)| text.push_str(&format!("{key} = {value}\n")));
    text
}

/// Left open in the configuration, and filled in where a model is placed.
const FILLED_IN_LATER: &[&str] = &["ctx_size", "slots"];

#[test]
fn the_defaults_in_the_documentation_are_those_of_the_code() {
    let doc = include_str!("../../../../docs/configuration.md");
    let folder = tempfile::tempdir().expect("temporary folder");
    let file = folder.path().join("config.toml");
    let vars = BTreeMap::from([("HOME".to_owned(), folder.path().display().to_string())]);
    let loaded = |text: &str| {
        std::fs::write(&file, text).expect("writes");
        let cli = Cli { config: Some(file.clone()), ..Cli::default() };
        let environment = Environment { vars: vars.clone(), cwd: PathBuf::from("/work") };
        let config = load(&cli, &environment).unwrap_or_else(|error| panic!("{error}\n{text}"));
        // A port that is written counts as asked for; what else differs is another default.
        format!("{config:#?}").replace("asked: true", "asked: false")
    };
    let (mut checked, mut wrong) = (0, Vec::new());
    for table in schema::TABLES.iter().filter(|table| !table.path.is_empty()) {
        let (_, section) = doc.split_once(&format!("### `{}`", table.head())).expect("a section");
        let section =
            section.split("\n### ").next().and_then(|rest| rest.split("\n## ").next()).expect("a part");
        for row in section.lines().filter(|line| line.starts_with("| `")) {
            let cells: Vec<&str> = row.split(" | ").collect();
            let key = cells[0].trim_start_matches("| ").trim_matches('`');
            // Defaults that are a value and nothing else.
            let Some(value) = cells[1].strip_prefix('`').and_then(|rest| rest.strip_suffix('`')) else {
                continue;
            };
            let is_value = value.starts_with(|c: char| c.is_ascii_digit() || "\"[".contains(c))
                || ["true", "false"].contains(&value);
            if !is_value
                || FILLED_IN_LATER.contains(&key)
                || value.contains('`')
                || needed(table.path).iter().any(|(own, _)| *own == key)
            {
                continue;
            }
            let (without, with) =
                (loaded(&with_key(table, None)), loaded(&with_key(table, Some((key, value)))));
            if let Some((without, with)) =
                without.lines().zip(with.lines()).find(|(without, with)| without != with)
            {
                wrong.push(format!(
                    "{key} in {} is not {value} when it is left out:{without}{with}",
                    table.head()
                ));
            }
            checked += 1;
        }
    }
    assert!(checked > 40, "most defaults are not found: {checked}");
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn peers_that_cannot_be_told_from_strangers_are_named() {
    let text = "[mesh]\nenabled = true\n[mesh.lan]\nenabled = true\ntrust = \"peers\"\n\
        [[mesh.peers]]\nname = \"gpu\"\naddr = \"/ip4/10.0.0.1/tcp/9000\"\n";
    let told = faults(text, &["--peer", "/ip4/10.0.0.2/tcp/9000"]).join("\n");
    assert!(told.contains("gpu, /ip4/10.0.0.2/tcp/9000 without an id"), "{told}");
    let text = text.replace("tcp/9000", &format!("tcp/9000/p2p/{PEER_ID}"));
    assert_eq!(faults(&text, &[]), Vec::<String>::new());
}

#[test]
fn a_collector_of_traces_is_an_http_url() {
    let read_endpoint = |text: &str| read(&format!("[telemetry]\notlp_endpoint = {text:?}\n"), &[]);
    let config = read_endpoint("http://127.0.0.1:4318").expect("loads");
    assert_eq!(config.otlp_endpoint.map(|url| url.to_string()), Some("http://127.0.0.1:4318/".to_owned()));
    for odd in ["127.0.0.1:4318", "https://collector", "http://a?b=1", "/v1/traces"] {
        assert!(read_endpoint(odd).is_err(), "{odd}");
    }
    assert!(read("", &[]).expect("loads").otlp_endpoint.is_none());
}

#[test]
fn the_lan_table_alone_turns_the_mesh_on_and_a_spoken_no_keeps_it_off() {
    let config = read("[mesh.lan]\nenabled = true\n", &[]).expect("loads");
    assert!(config.mesh.enabled == Some(true) && config.mesh.lan.is_some());
    let config = read("[mesh]\nenabled = false\n[mesh.lan]\nenabled = true\n", &[]).expect("loads");
    assert!(config.mesh.enabled == Some(false) && config.mesh.lan.is_none());
}
