//! What a person does in the console, in a real browser against real nodes. Where `SCREENSHOTS` names a folder, pictures of it
//! are put there.
//!
//! Skips with a printed reason where the programs are not built, or Chromium is not installed.
#![cfg(target_os = "linux")]
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

mod guarded;

use std::path::Path;
use std::time::Duration;

use base64::Engine as _;
use mesh_control::{Client, JoinRequest, LinkRequest};
use mesh_inference::gguf::tiny::TinyModel;
use qmt_tests::browser::Browser;
use qmt_tests::fleet::{Fleet, Setup, built};
use qmt_tests::stand_in;

/// Time between two tokens of the model: long enough to kill its node in the middle of an answer.
const GAP: Duration = Duration::from_millis(50);

struct Scene {
    fleet: Fleet,
    browser: Browser,
    _folder: tempfile::TempDir,
}

/// Three nodes: the first has the console and an agent, the others the model. None where something is missing.
async fn scene() -> Option<Scene> {
    let programs = built("qmt-node").and_then(|node| Ok((node, built("qmt-stand-in")?)));
    let (program, stand_in) = match programs {
        Ok(programs) => programs,
        Err(reason) => return skip(&reason),
    };
    let browser = match Browser::start(1280, 900).await {
        Ok(browser) => browser,
        Err(reason) => return skip(&reason),
    };
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("talks.gguf");
    TinyModel::default().write(&model).unwrap();
    stand_in::install_slow(&folder.path().join("bin"), &stand_in, GAP).unwrap();
    let quick = "inference.calibrate = false\ninference.assign = false\ninference.threads = 1\ninference.lend = false\n\
                 inference.debounce_secs = 0.2\ninference.left_out_secs = 1\ninference.patience_secs = 2\n";
    let configure = |number: usize| match number {
        0 => format!(
            "{quick}console.port = 0\n[[agents]]\nid = \"helper\"\nmodel = \"talks\"\ndescription = \"Says what it is told\"\n"
        ),
        _ => format!(
            "{quick}inference.bin_dir = {:?}\ninference.model_dirs = [{:?}]\ninference.models = [\"talks\"]\n",
            folder.path().join("bin"),
            folder.path()
        ),
    };
    let fleet =
        Fleet::start(Setup { configure: &configure, ..Setup::on_loopback(&program, 3) }).await.unwrap();
    Some(Scene { fleet, browser, _folder: folder })
}

fn skip<T>(reason: &anyhow::Error) -> Option<T> {
    println!("skipped: {reason:#}");
    None
}

async fn signed_in(browser: &Browser, client: &Client, read_only: bool) {
    let link = client.console_link(&LinkRequest { read_only }).await.unwrap();
    browser.open(&link.url).await.unwrap();
}

/// A picture for the documentation, where somebody wants one.
async fn picture(browser: &Browser, name: &str) {
    let Some(folder) = std::env::var_os("SCREENSHOTS") else { return };
    let png = base64::engine::general_purpose::STANDARD.decode(browser.picture().await.unwrap()).unwrap();
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(Path::new(&folder).join(format!("{name}.png")), png).unwrap();
}

/// Where a view is.
async fn goes_to(browser: &Browser, view: &str) {
    browser.click(view).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_person_sees_the_mesh_chats_and_watches_a_host_die_and_return() {
    let Some(Scene { mut fleet, browser, _folder }) = scene().await else { return };
    signed_in(&browser, fleet.node(0).client(), false).await;
    browser.shows(&["node0", "node1", "node2", "live", "alive", "healthy"]).await.unwrap();
    browser
        .until("both links are drawn", async || {
            browser.run("return document.querySelectorAll('svg.topology line.direct').length").await.unwrap()
                == 2
        })
        .await
        .unwrap();
    picture(&browser, "console-overview").await;

    goes_to(&browser, "Models").await;
    browser.shows(&["talks", "node1", "node2", "ready"]).await.unwrap();
    picture(&browser, "console-models").await;

    goes_to(&browser, "Chat").await;
    browser.type_into("Your message", "word").await.unwrap();
    browser.click("Send").await.unwrap();
    browser.shows(&["word.3 "]).await.unwrap();
    // Whichever of both answers dies in the middle of its answer.
    let answering = answering(&fleet).await;
    fleet.kill(answering);
    browser.shows(&["word.59"]).await.unwrap();
    let whole = stand_in::text("word", 60);
    let shown = browser.text().await.unwrap();
    assert!(shown.contains(whole.trim_end()), "a word is lost, doubled or in the wrong place: {shown}");
    picture(&browser, "console-chat").await;

    goes_to(&browser, "Overview").await;
    let name = format!("node{answering}");
    browser.shows(&[&format!("{name} is down")]).await.unwrap();
    fleet.restart(answering, "").await.unwrap();
    browser.shows(&[&format!("{name} is there")]).await.unwrap();
    picture(&browser, "console-return").await;
}

/// The node that was asked by the first one's gateway.
async fn answering(fleet: &Fleet) -> usize {
    for number in 1..fleet.count() {
        let metrics = fleet.node(number).client().metrics().await.unwrap();
        let asked = metrics
            .lines()
            .find_map(|line| line.strip_prefix("mesh_inference_requests_total{from=\"peers\"} "));
        if asked.unwrap() != "0" {
            return number;
        }
    }
    panic!("nobody was asked");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_person_invites_holds_a_session_forks_it_and_drops_a_model() {
    let Some(Scene { fleet, browser, _folder }) = scene().await else { return };
    let client = fleet.node(0).client();
    signed_in(&browser, client, false).await;
    browser.shows(&["node0", "node1"]).await.unwrap();

    goes_to(&browser, "Invites").await;
    browser.click("Make the invite").await.unwrap();
    browser.shows(&["qmt-cli join "]).await.unwrap();
    browser
        .until("a QR code is drawn", async || {
            browser.run("return document.querySelector('img.qr')?.naturalWidth > 0").await.unwrap() == true
        })
        .await
        .unwrap();
    picture(&browser, "console-invite").await;
    let token = browser
        .run("return document.getElementById('invite-command').innerText.split(' ').at(-1)")
        .await
        .unwrap();
    let newcomer = newcomer().await;
    newcomer.client.join(&JoinRequest { token: token.as_str().unwrap().to_owned() }).await.unwrap();
    browser.shows(&["used up", "newcomer"]).await.unwrap();

    goes_to(&browser, "Sessions").await;
    browser.type_into("Name (optional)", "first").await.unwrap();
    browser.click("Begin").await.unwrap();
    browser.type_into("Prompt", "tell").await.unwrap();
    browser.click("Send").await.unwrap();
    browser.shows(&["tell.0 tell.1", "tell.59", "Fork here"]).await.unwrap();
    browser.click("Fork here").await.unwrap();
    browser.shows(&["forked from"]).await.unwrap();
    // The list is read anew beside the session that is open.
    browser
        .until("the fork stands below", async || {
            browser.run("return document.querySelectorAll('ul.plain ul.plain li').length").await.unwrap() == 1
        })
        .await
        .unwrap();
    picture(&browser, "console-sessions").await;

    // One node's model, and back.
    goes_to(&browser, "Models").await;
    browser.click("Unload at node1").await.unwrap();
    browser.shows(&["talks was unloaded at node1", "Unload at node2"]).await.unwrap();
    browser
        .until("node1 serves it no more", async || {
            let models = client.models().await.unwrap();
            let here = |one: &mesh_control::ProviderView| {
                one.node_name == "node1" && one.state == mesh_control::ModelState::Ready
            };
            !models.iter().any(|model| model.providers.iter().any(here))
        })
        .await
        .unwrap();
    browser.type_into("Name, path", "talks").await.unwrap();
    let chosen = "const at = [...document.querySelectorAll('select')].find((one) => one.labels[0]?.innerText.startsWith('At')); \
                  at.value = [...at.options].find((one) => one.innerText === 'node1').value; at.dispatchEvent(new Event('change'));";
    browser.run(chosen).await.unwrap();
    browser.click("Load").await.unwrap();
    browser.shows(&["node1 loads talks", "Unload at node1", "Unload at node2"]).await.unwrap();

    browser.click("Drop everywhere").await.unwrap();
    browser.say_yes().await.unwrap();
    browser.shows(&["Stopped on 2 nodes"]).await.unwrap();
    drop(fleet);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_outlives_its_node_and_a_watcher_changes_nothing() {
    let Some(Scene { mut fleet, browser, _folder }) = scene().await else { return };
    signed_in(&browser, fleet.node(0).client(), true).await;
    browser.shows(&["watching only", "node1"]).await.unwrap();
    let buttons = browser
        .run("return [...document.querySelectorAll('button')].map((one) => one.innerText)")
        .await
        .unwrap();
    assert_eq!(buttons, serde_json::json!(["Sign out"]), "a watcher is offered no change");
    let refused = browser
        .run("const sent = await fetch('/api/leave', {method: 'POST', headers: {'content-type': 'application/json'}, body: '{\"scope\": \"x\"}'}); return [sent.status, (await sent.json()).error.code]")
        .await
        .unwrap();
    assert_eq!(refused, serde_json::json!([403, "not_allowed"]));

    for view in ["Models", "Chat", "Sessions", "Invites", "Routes", "Audit", "Logs", "Doctor"] {
        goes_to(&browser, view).await;
        browser.until(&format!("{view} is there, without trouble"), async || {
            browser.run(&format!("return document.querySelector('h1')?.innerText === {view:?} && !document.querySelector('[role=alert]')")).await.unwrap() == true
        }).await.unwrap();
        picture(&browser, &format!("watcher-{}", view.to_lowercase())).await;
    }
    goes_to(&browser, "Overview").await;
    // The port of this run is gone with it: the next run has it again since it is asked for.
    let port = fleet.node(0).client().status().await.unwrap().console_url.unwrap();
    let port: u16 = port.rsplit(':').next().unwrap().parse().unwrap();
    fleet.kill(0);
    browser.shows(&["no answer from the node"]).await.unwrap();
    fleet.restart(0, &format!("console.port = {port}\n")).await.unwrap();
    browser.shows(&["live", "the node answers again"]).await.unwrap();

    browser.resize(390, 844).await.unwrap();
    for view in ["Models", "Chat", "Sessions", "Invites", "Routes", "Audit", "Logs", "Doctor", "Overview"] {
        goes_to(&browser, view).await;
        let wide = browser
            .run("await new Promise(requestAnimationFrame); return [document.documentElement.scrollWidth, innerWidth]")
            .await
            .unwrap();
        assert!(wide[0].as_u64() <= wide[1].as_u64(), "{view} scrolls sideways on a phone: {wide}");
    }
    picture(&browser, "console-phone").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_keyboard_is_enough() {
    let Some(Scene { fleet, browser, _folder }) = scene().await else { return };
    signed_in(&browser, fleet.node(0).client(), false).await;
    browser.shows(&["node1", "live"]).await.unwrap();
    let focused = async || {
        let script = "const one = document.activeElement; return one.innerText?.trim() || one.labels?.[0]?.innerText.trim() || one.getAttribute('aria-label') || one.id || one.tagName";
        browser.run(script).await.unwrap().as_str().unwrap_or_default().to_owned()
    };
    // By Tab alone to each view, and with Enter into it; then what stands in it is next.
    let go = async |to: &str| {
        for _ in 0..60 {
            if focused().await == to {
                return;
            }
            browser.press("Tab").await.unwrap();
        }
        panic!("{to:?} is not reached by Tab; at {:?}", focused().await);
    };
    go("Invites").await;
    browser.press("Enter").await.unwrap();
    browser.shows(&["Make the invite"]).await.unwrap();
    let is_main = browser.run("return document.activeElement.id").await.unwrap();
    assert_eq!(is_main, "main", "the view has the focus");
    go("Make the invite").await;
    browser.press("Enter").await.unwrap();
    browser.shows(&["qmt-cli join "]).await.unwrap();
    // Everything that can be used has a name for those who hear it.
    for view in ["Overview", "Models", "Chat", "Sessions", "Invites", "Routes", "Audit", "Logs", "Doctor"] {
        goes_to(&browser, view).await;
        let script = "await new Promise(requestAnimationFrame); const named = (one) => one.innerText?.trim() || one.labels?.[0]?.innerText.trim() || one.getAttribute('aria-label') || one.title; \
                      return [...document.querySelectorAll('button, a, input, select, textarea')].filter((one) => one.getClientRects().length && !named(one)).map((one) => one.outerHTML)";
        let unnamed = browser.run(script).await.unwrap();
        assert_eq!(unnamed, serde_json::json!([]), "without a name in {view}");
    }
    drop(fleet);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_happened_while_nobody_listened_is_told_afterwards() {
    let Some(Scene { mut fleet, browser, _folder }) = scene().await else { return };
    signed_in(&browser, fleet.node(0).client(), false).await;
    browser.shows(&["node1", "node2", "live"]).await.unwrap();
    // Numbered: each of the changes is one more than the one before.
    let numbered = "const { rest } = await import('/state.js'); rest(); \
                    const source = new EventSource('/api/events'); window.heard = []; \
                    for (const kind of ['snapshot', 'node', 'link', 'model', 'status', 'model_gone']) source.addEventListener(kind, (one) => window.heard.push(Number(one.lastEventId)));";
    browser.run(numbered).await.unwrap();
    // One that connects after the death hears of it in its snapshot alone.
    let listens = async || browser.run("return window.heard.length > 0").await.unwrap() == true;
    browser.until("the other reader listens", listens).await.unwrap();
    // The page's own stream is gone; meanwhile a node dies.
    fleet.kill(2);
    browser
        .until("the node has told of it", async || {
            let nodes = fleet.node(0).client().nodes().await.unwrap();
            nodes.iter().any(|node| node.name == "node2" && node.state == mesh_control::NodeState::Down)
        })
        .await
        .unwrap();
    assert!(!browser.text().await.unwrap().contains("node2 is down"), "the page heard nothing");
    browser
        .until("the other reader heard of it", async || {
            browser.run("return window.heard.length > 2").await.unwrap() == true
        })
        .await
        .unwrap();
    let heard = browser.run("return window.heard").await.unwrap();
    let heard: Vec<u64> = heard.as_array().unwrap().iter().map(|one| one.as_u64().unwrap()).collect();
    assert!(heard.windows(2).all(|two| two[1] == two[0] + 1), "{heard:?}");
    browser.run("const { enter } = await import('/state.js'); await enter();").await.unwrap();
    browser.shows(&["node2 is down", "the node answers again", "live"]).await.unwrap();
}

/// Lines that a node keeps, and more than that.
const LINES: u64 = 10_000;

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_lines_of_log_are_gone_through_a_part_at_a_time() {
    let browser = match (built("qmt-node"), Browser::start(1280, 900).await) {
        (Ok(_), Ok(browser)) => browser,
        (Err(reason), _) | (_, Err(reason)) => return skip(&reason).unwrap_or_default(),
    };
    let node = alone("console.port = 0\n", "info,mesh_inference=debug").await;
    let status = node.client.status().await.unwrap();
    let gateway: std::net::SocketAddr =
        status.gateway_url.unwrap().trim_start_matches("http://").parse().unwrap();
    let kept = async || {
        let query = mesh_control::LogQuery { limit: Some(1), ..mesh_control::LogQuery::default() };
        node.client.logs(&query).await.unwrap().through
    };
    // Each request is a line or more.
    while kept().await < LINES + 500 {
        let asks = (0..8).map(|_| guarded::asked_often(gateway, 250));
        futures_util::future::join_all(asks).await;
    }
    signed_in(&browser, &node.client, false).await;
    browser.shows(&["live"]).await.unwrap();
    browser
        .run("window.long = 0; new PerformanceObserver((list) => { for (const one of list.getEntries()) window.long += one.duration > 100; }).observe({ type: 'longtask' })")
        .await
        .unwrap();
    goes_to(&browser, "Logs").await;
    let level = "const level = document.querySelector('select'); level.value = 'debug'; level.dispatchEvent(new Event('change'));";
    browser.run(level).await.unwrap();
    browser.shows(&["10000 lines, live"]).await.unwrap();
    let drawn = async || {
        let script = "const lines = document.querySelectorAll('[role=log] > div'); return [lines.length, lines[0]?.textContent, lines[lines.length - 1]?.textContent]";
        browser.run(script).await.unwrap()
    };
    let newest = drawn().await;
    assert!((1..=200).contains(&newest[0].as_u64().unwrap()), "{newest}");
    browser.shows(&["to 10000 of 10000"]).await.unwrap();
    browser.click("Earlier").await.unwrap();
    browser.shows(&["Lines 9601 to 9800 of 10000"]).await.unwrap();
    let before = drawn().await;
    assert!(before[0] == 200 && before[2] != newest[2], "{before}");
    browser.click("Later").await.unwrap();
    browser.shows(&["Lines 9801 to 10000 of 10000"]).await.unwrap();
    // The page answers, and a filter is the node's work.
    browser.type_into("Contains", "no line has this").await.unwrap();
    browser.shows(&["0 lines, live", "No line fits"]).await.unwrap();
    println!("tasks of more than 100 ms: {}", browser.run("return window.long").await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn many_members_and_lines_are_drawn_and_hostile_names_are_text() {
    let Some(Scene { fleet, browser, _folder }) = scene().await else { return };
    signed_in(&browser, fleet.node(0).client(), false).await;
    browser.shows(&["node1"]).await.unwrap();
    // As the stream would tell it.
    browser
        .run(
            "const { state, changed } = await import('/state.js'); const one = [...state.nodes.values()].at(-1); \
             for (let at = 0; at < 300; at++) { const id = `many-${at}`; state.nodes.set(`${one.scope}/${id}`, { ...one, id, name: at ? id : '<img src=x onerror=\"window.hurt=1\">' }); } changed();",
        )
        .await
        .unwrap();
    browser.shows(&["Nodes (303)", "many-299", "<img src=x"]).await.unwrap();
    assert_eq!(browser.run("return [document.querySelectorAll('svg.topology circle').length, window.hurt ?? null, document.images.length]").await.unwrap(), serde_json::json!([303, null, 0]));
    browser.type_into("Filter nodes", "many-29").await.unwrap();
    browser
        .until("the filter holds", async || {
            browser.run("return document.querySelectorAll('tbody tr').length").await.unwrap() == 11
        })
        .await
        .unwrap();
    picture(&browser, "console-many").await;
    drop(fleet);
}

struct Newcomer {
    client: Client,
    _home: tempfile::TempDir,
    _process: qmt_tests::lab::Process,
}

/// A node that is in no mesh yet.
async fn newcomer() -> Newcomer {
    alone("", "info").await
}

/// The same with more lines of configuration, and a log of this level.
async fn alone(configuration: &str, level: &str) -> Newcomer {
    let home = tempfile::tempdir().unwrap();
    let text = format!(
        "{configuration}inference.model_dirs = []\ninference.lend = false\napi.port = 0\nmesh.node_name = \"newcomer\"\nmesh.internet.relay_mode = \"disabled\"\n"
    );
    std::fs::write(home.path().join("config.toml"), text).unwrap();
    let mut command = std::process::Command::new(built("qmt-node").unwrap());
    command
        .env("QMT_HOME", home.path())
        .env("HOME", home.path())
        .env("RUST_LOG", level)
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null());
    let process = qmt_tests::lab::Process::start(&mut command);
    let client = Client::for_home(home.path());
    for _ in 0..600 {
        if client.status().await.is_ok() {
            return Newcomer { client, _home: home, _process: process };
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("the newcomer does not answer")
}
