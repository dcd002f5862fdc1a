//! Running registries: on one folder, and on folders of their own that ask each other.

use std::collections::BTreeMap;

use serde_json::json;
use tokio::time::timeout;

use super::*;

const PATIENCE: Duration = Duration::from_secs(60);

fn name(name: &str) -> NodeName {
    name.parse().expect("a name")
}

fn facts(of: &str) -> Facts {
    Facts {
        name: name(of),
        node: None,
        host: format!("{of}.host"),
        port: 3000,
        agents: vec![format!("agent-of-{of}")],
        providers: Vec::new(),
        models: Vec::new(),
        capabilities: Vec::new(),
        version: "1".to_owned(),
    }
}

/// A registry of quick beats, so that a test sees several.
fn config(folder: impl Into<PathBuf>) -> Config {
    Config {
        heartbeat: Duration::from_millis(60),
        stale: Duration::from_millis(1_500),
        poll: Duration::from_millis(20),
        ..Config::at(folder)
    }
}

async fn until(registry: &Registry, what: impl FnMut(&Arc<View>) -> bool) -> Arc<View> {
    let mut views = registry.watch();
    let seen = timeout(PATIENCE, views.wait_for(what)).await;
    seen.unwrap_or_else(|_| panic!("it never came to that: {:?}", registry.view())).expect("runs").clone()
}

fn life(view: &View, of: &str) -> Option<Life> {
    view.named(&name(of)).map(|node| node.life)
}

#[tokio::test]
async fn nodes_of_one_folder_see_each_other_come_change_and_go() {
    let folder = tempfile::tempdir().expect("a folder");
    let one = Registry::start(config(folder.path()), facts("one"), None, None).await.expect("starts");
    let two = Registry::start(config(folder.path()), facts("two"), None, None).await.expect("starts");
    until(&one, |view| life(view, "two") == Some(Life::Online)).await;
    until(&two, |view| life(view, "one") == Some(Life::Online)).await;
    two.set(Facts { agents: vec!["opus".to_owned()], ..facts("two") }).await;
    until(&one, |view| view.with_agent("opus").any(|node| node.entry.id() == "two")).await;
    two.shutdown().await;
    until(&one, |view| life(view, "two") == Some(Life::Offline)).await;
    let again = Registry::start(config(folder.path()), facts("two"), None, None).await.expect("starts");
    until(&one, |view| life(view, "two") == Some(Life::Online)).await;
    again.shutdown().await;
    one.shutdown().await;
}

#[tokio::test]
async fn a_silent_node_is_stale_and_a_beating_one_is_not() {
    let folder = tempfile::tempdir().expect("a folder");
    let one = Registry::start(config(folder.path()), facts("one"), None, None).await.expect("starts");
    let two = Registry::start(config(folder.path()), facts("two"), None, None).await.expect("starts");
    let silent =
        Entry::read("silent", json!({"name": "silent", "lastSeen": u64::MAX >> 12})).expect("an entry");
    one.learn(vec![silent]).await.expect("merges");
    let lives = (Some(Life::Stale), Some(Life::Online));
    until(&two, |view| (life(view, "silent"), life(view, "one")) == lives).await;
    two.shutdown().await;
    one.shutdown().await;
}

#[tokio::test]
async fn a_lost_and_a_torn_file_come_back_with_everybody_who_lives() {
    let folder = tempfile::tempdir().expect("a folder");
    let slow = || Config { heartbeat: Duration::from_secs(3600), ..config(folder.path()) };
    let one = Registry::start(slow(), facts("one"), None, None).await.expect("starts");
    let two = Registry::start(slow(), facts("two"), None, None).await.expect("starts");
    until(&one, |view| life(view, "two").is_some()).await;
    let file = RegistryFile::open(folder.path()).expect("opens");
    for loss in [None, Some("{\"version\": 1, \"no"), Some("")] {
        match loss {
            None => std::fs::remove_file(file.path()).expect("removes"),
            Some(text) => std::fs::write(file.path(), text).expect("tears"),
        }
        let whole = async {
            loop {
                if let Found::Contents(contents) = file.read().expect("reads")
                    && contents.nodes().keys().eq(["one", "two"])
                {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(PATIENCE, whole).await.unwrap_or_else(|_| panic!("{loss:?} was not mended"));
    }
    two.shutdown().await;
    one.shutdown().await;
}

#[tokio::test]
async fn an_announcement_is_taken_from_its_own_node_only() {
    let folder = tempfile::tempdir().expect("a folder");
    let one = Registry::start(config(folder.path()), facts("one"), None, None).await.expect("starts");
    let uuid = "0193a5b0-7c1e-4d2a-9b8f-00c0ffee0001";
    one.join(&name("two"), json!({"id": uuid, "name": "two"})).await.expect("its own");
    one.join(&name("two"), json!({"id": "two", "name": "two", "agents": ["grok"]})).await.expect("its own");
    assert!(one.view().named(&name("two")).is_some());
    let refused = [
        (
            "evil",
            json!({"id": "two", "name": "two"}),
            "the entry is that of two, and the certificate that of evil",
        ),
        ("evil", json!({"id": uuid, "name": "evil"}), "belongs to two"),
        ("evil", json!({"id": "three", "name": "evil"}), "is its name or a UUID, and \"three\" is neither"),
        ("evil", json!({"id": "evil", "name": "a b"}), "a node's name has"),
        ("evil", json!("evil"), "a node's id has"),
    ];
    for (caller, value, why) in refused {
        let error = one.join(&name(caller), value).await.expect_err(why).to_string();
        assert!(error.contains(why), "{error}");
    }
    one.shutdown().await;
    assert_eq!(one.join(&name("two"), json!({"name": "two"})).await, Err(JoinError::Closed));
}

/// A network of registries, each with a folder of its own, that ask each other by their hosts.
#[derive(Clone, Default)]
struct Network {
    nodes: Arc<Mutex<BTreeMap<String, Registry>>>,
}

impl Network {
    fn at(&self, host: &str) -> Option<Registry> {
        self.nodes.lock().expect("no panic").get(host).cloned()
    }

    async fn start(&self, of: &str, places: &[&str]) -> (tempfile::TempDir, Registry) {
        let folder = tempfile::tempdir().expect("a folder");
        let places = places.iter().map(|host| Place { name: None, host: format!("{host}.host"), port: 3000 });
        let config = Config { places: places.collect(), ..config(folder.path()) };
        let registry =
            Registry::start(config, facts(of), Some(Arc::new(self.clone())), None).await.expect("starts");
        self.nodes.lock().expect("no panic").insert(format!("{of}.host"), registry.clone());
        (folder, registry)
    }

    /// Ends a node as a pulled plug does.
    async fn kill(&self, of: &str) {
        let registry = self.nodes.lock().expect("no panic").remove(&format!("{of}.host"));
        let handle = registry.expect("runs").task.handle.lock().expect("no panic").take();
        handle.expect("runs").abort();
    }
}

impl Ask for Network {
    fn exchange(&self, place: Place, own: Value) -> Asked {
        let there = self.at(&place.host);
        Box::pin(async move {
            let there = there.ok_or("no such host")?;
            let caller = own["name"].as_str().unwrap_or_default().parse()?;
            there.join(&caller, own).await?;
            Ok(there.view().value(0))
        })
    }
}

#[tokio::test]
async fn nodes_that_know_one_seed_find_each_other_and_go_on_without_it() {
    let network = Network::default();
    let (_a, seed) = network.start("seed", &[]).await;
    let mut others = Vec::new();
    for of in ["one", "two", "three"] {
        others.push(network.start(of, &["seed"]).await);
    }
    let everybody = ["one", "two", "three", "seed"];
    let online = |view: &Arc<View>, whom: &[&str]| whom.iter().all(|of| life(view, of) == Some(Life::Online));
    for registry in others.iter().map(|(_, registry)| registry).chain([&seed]) {
        until(registry, |view| online(view, &everybody)).await;
    }
    network.kill("seed").await;
    for (_, registry) in &others {
        let dead = |view: &Arc<View>| life(view, "seed") == Some(Life::Stale);
        until(registry, |view| dead(view) && online(view, &["one", "two", "three"])).await;
    }
    let told = others[0].1.view().value(0);
    assert_eq!(
        (&told["nodes"]["seed"]["status"], &told["nodes"]["two"]["status"]),
        (&json!("stale"), &json!("online"))
    );
    // Who comes now knows only a dead seed and one other node.
    let (_b, late) = network.start("late", &["seed", "two"]).await;
    until(&late, |view| online(view, &["one", "two", "three", "late"])).await;
    assert_eq!(life(&late.view(), "seed"), None, "what others only remember is not taken for alive");
    until(&others[0].1, |view| online(view, &["late"])).await;
    others[2].1.shutdown().await;
    until(&others[0].1, |view| life(view, "three") == Some(Life::Offline)).await;
    for registry in others.iter().map(|(_, registry)| registry).chain([&late]) {
        registry.shutdown().await;
    }
}

#[tokio::test]
async fn a_seed_that_comes_late_is_found() {
    let network = Network::default();
    let (_a, one) = network.start("one", &["seed"]).await;
    let (_b, two) = network.start("two", &["seed"]).await;
    let (_c, seed) = network.start("seed", &[]).await;
    until(&one, |view| life(view, "two") == Some(Life::Online)).await;
    until(&two, |view| life(view, "one") == Some(Life::Online)).await;
    for registry in [one, two, seed] {
        registry.shutdown().await;
    }
}

#[tokio::test]
async fn a_folder_that_is_away_for_a_while_loses_nothing() {
    let parent = tempfile::tempdir().expect("a folder");
    let folder = parent.path().join("share");
    let one = Registry::start(config(&folder), facts("one"), None, None).await.expect("starts");
    std::fs::rename(&folder, parent.path().join("away")).expect("goes");
    one.learn(vec![Entry::read("two", json!({"name": "two"})).expect("an entry")]).await.expect("merges");
    assert!(one.view().get("two").is_some());
    std::fs::rename(parent.path().join("away"), &folder).expect("is back");
    let file = RegistryFile::open(&folder).expect("opens");
    let written = async {
        while !matches!(file.read().expect("reads"), Found::Contents(all) if all.nodes().contains_key("two"))
        {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, written).await.expect("it is written when the folder is back");
    one.shutdown().await;
}
