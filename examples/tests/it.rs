//! Every example ends by itself and prints what it says.

use std::path::PathBuf;
use std::time::Duration;

use tokio::process::Command;

/// Long enough for any machine; an example takes about a second.
const DEADLINE: Duration = Duration::from_secs(60);

/// Where cargo puts an example of the build that this test belongs to.
fn built(name: &str) -> PathBuf {
    let here = std::env::current_exe().expect("this test's own path");
    let path = here.ancestors().nth(2).expect("target/PROFILE/deps/TEST").join("examples").join(name);
    assert!(path.exists(), "{} is missing; build it with `cargo build --examples`", path.display());
    path
}

/// What an example prints, line by line; it must end well.
async fn lines(name: &str) -> Vec<String> {
    let run = Command::new(built(name)).kill_on_drop(true).output();
    let output = tokio::time::timeout(DEADLINE, run).await.expect("it ends by itself").expect("it starts");
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}\n{out}\n{err}", output.status);
    assert_eq!(err, "", "nothing is wrong, so nothing is said there");
    out.lines().map(str::to_owned).collect()
}

#[tokio::test]
async fn embed_answers_through_the_second_node() {
    assert_eq!(lines("embed").await, ["first has the model echo", "You said: Is anybody there?"]);
}

#[test]
fn embed_wires_the_crates_in_under_eighty_lines() {
    let lines = include_str!("../embed.rs").lines().count();
    assert!(lines < 80, "it has {lines}");
}

#[tokio::test]
async fn call_service_serves_whom_it_knows_and_waits_no_longer_than_its_deadline() {
    assert_eq!(
        lines("call_service").await,
        [
            "laptop joined home as member",
            "a mesh is several machines, and one place for their models (asked by laptop, a member)",
            "nobody here knows \"quorum\" (code 1)",
            "no reply within 200ms",
        ]
    );
}

#[tokio::test]
async fn redeem_offline_admits_two_and_shows_every_fault_with_its_mend() {
    let lines = lines("redeem_offline").await;
    let starts = |start: &str| lines.iter().filter(|line| line.starts_with(start)).count();
    assert_eq!((starts("laptop: member until "), starts("tablet: member until ")), (2, 1), "{lines:#?}");
    assert_eq!(starts("phone: the invite is used up"), 1, "{lines:#?}");

    let listed = lines.iter().skip_while(|line| *line != "What can be wrong with an invite:");
    let faults = listed.filter_map(|line| line.get(..3)?.trim().parse::<u8>().ok());
    let codes = [1, 2, 3, 3, 3, 4, 5, 6, 7, 8, 10, 12, 13, 14, 15, 17, 18];
    assert_eq!(faults.collect::<Vec<_>>(), codes, "{lines:#?}");
    assert_eq!(starts("     mend: "), codes.len());
}

#[tokio::test]
async fn remote_session_is_begun_forked_and_resumed() {
    assert_eq!(
        lines("remote_session").await,
        [
            "desktop has the agents [\"teller\"]",
            "You said: Hello!",
            "the fork: You said: What if?",
            "resumed: You said: Where were we?",
        ]
    );
    assert!(include_str!("../remote_session.rs").lines().count() < 80);
}
