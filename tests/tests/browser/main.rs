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
            "{quick}inference.bin_dir = {:?}\ninference.models = [{model:?}]\n",
            folder.path().join("bin")
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
    picture(&browser, "console-sessions").await;
    assert_eq!(
        browser.run("return document.querySelectorAll('ul.plain ul.plain li').length").await.unwrap(),
        1,
        "the fork stands below"
    );

    goes_to(&browser, "Models").await;
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
    let fits = browser.run("return document.documentElement.scrollWidth <= innerWidth").await.unwrap();
    assert_eq!(fits, true, "a phone scrolls sideways");
    picture(&browser, "console-phone").await;
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
    let home = tempfile::tempdir().unwrap();
    std::fs::write(home.path().join("config.toml"), "inference.model_dirs = []\ninference.lend = false\napi.port = 0\nmesh.node_name = \"newcomer\"\nmesh.internet.relay_mode = \"disabled\"\n").unwrap();
    let mut command = std::process::Command::new(built("qmt-node").unwrap());
    command
        .env("QMT_HOME", home.path())
        .env("HOME", home.path())
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
