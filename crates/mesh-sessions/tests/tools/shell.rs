//! The tool `shell`.

use std::ffi::OsString;
use std::io::{BufRead, BufReader};
use std::process::{Command, ExitCode, Stdio};

use mesh_sessions::content::ToolOutcome::{Cancelled, Done, Failed};
use mesh_sessions::tool::Tool;
use mesh_sessions::tools::{Confinement, Guard, ShellLimits};
use serde_json::json;

use crate::room::{Room, block_on, call, is_alive, pids, shell_in, text, until};

pub(crate) fn a_command_says_what_it_prints_and_how_it_ended() {
    let room = Room::new();
    std::fs::create_dir(room.root.join("sub")).unwrap();
    std::os::unix::fs::symlink("/", room.root.join("out")).unwrap();
    let root = room.root.to_str().unwrap().to_owned();
    let said = |arguments: serde_json::Value| {
        let ran = block_on(room.shell.run(call(arguments).run));
        (ran.outcome, text(&ran))
    };
    assert_eq!(
        said(json!({"command": "echo one; echo two >&2; echo three"})),
        (Done, "one\ntwo\nthree\n".into())
    );
    assert_eq!(said(json!({"command": "pwd"})), (Done, format!("{root}\n")));
    assert_eq!(said(json!({"command": "pwd", "path": "sub"})), (Done, format!("{root}/sub\n")));
    assert_eq!(said(json!({"command": "true"})), (Done, "[no output]".into()));
    assert_eq!(said(json!({"command": "printf x; exit 3"})), (Failed, "x\n[exit status 3]".into()));
    assert_eq!(
        said(json!({"command": "kill -9 $$"})),
        (Failed, "[ended by signal 9, exit status 137]".into())
    );
    let (outcome, text) = said(json!({"command": "nosuchprogram"}));
    assert!(outcome == Failed && text.contains("not found") && text.ends_with("[exit status 127]"), "{text}");
    assert_eq!(said(json!({"command": "cat; echo end"})), (Done, "end\n".into()), "there is no input");
    let (_, text) = said(json!({"command": "(: > /dev/tty) 2>&1 || echo none"}));
    assert!(text.ends_with("none\n"), "there is no terminal: {text}");
    assert_eq!(said(json!({"command": "printf 'a\\377b'"})), (Done, "a\u{fffd}b".into()));
    for path in ["..", "out", "/etc", "sub/../.."] {
        let (outcome, text) = said(json!({"command": "true", "path": path}));
        assert!(outcome == Failed && text.contains("leads out of the workspace"), "{path}: {text}");
    }
    assert_eq!(said(json!({"cmd": "true"})).0, Failed);
    assert_eq!(said(json!({"command": "a\0b"})).0, Failed);
}

pub(crate) fn a_huge_output_is_bounded_and_counted() {
    let room = Room::new();
    let call = call(json!({"command": "yes 0123456789abcde | head -c 64000000; echo the end"}));
    let ran = block_on(room.shell.run(call.run));
    let text = text(&ran);
    assert_eq!(ran.outcome, Done);
    let kept = ShellLimits::default().result_bytes;
    assert!((kept..kept + 200).contains(&text.len()), "{}", text.len());
    assert!(text.starts_with("0123456789abcde\n") && text.ends_with("\nthe end\n"), "{text}");
    let left_out = 64_000_000 + 8 - kept;
    assert!(text.contains(&format!("[… {left_out} bytes in {} lines left out …]", left_out / 16)), "{text}");
    let printed = call.printed.lock().unwrap();
    assert!((256 * 1024..512 * 1024).contains(&printed.len()), "{}", printed.len());
    assert!(printed.ends_with("[… the rest is not shown while it runs …]\n"));
}

/// Ignores all that can be ignored, and so do those that it starts.
const STUBBORN: &str = "trap '' TERM HUP INT; echo $$; (while :; do sleep 0.05; done) & echo $!; \
    while :; do sleep 0.05; done";

pub(crate) fn what_ignores_sigterm_is_killed() {
    let room = Room::new();
    let call = call(json!({"command": STUBBORN, "timeout_seconds": 1}));
    let ran = block_on(room.shell.run(call.run));
    assert_eq!(ran.outcome, Failed);
    assert!(text(&ran).ends_with("\n[ended: its 1 s were up]"), "{ran:?}");
    let started = pids(&text(&ran));
    assert_eq!(started.len(), 2);
    assert!(!started.into_iter().any(is_alive), "it is over only when they are gone");
}

pub(crate) fn nothing_outlives_its_call() {
    let room = Room::new();
    let mut commands = vec![
        "sleep 1000 & echo $!",
        "(sleep 1000 & echo $!) & wait",
        "nohup sleep 1000 >/dev/null 2>&1 & echo $!",
        "sleep 1000 & echo $!; kill -9 $$",
    ];
    if cfg!(target_os = "linux") {
        commands.push("setsid sh -c 'sleep 1000 & echo $!; exec >/dev/null; sleep 1000' & sleep 0.3");
        commands.push(
            "setsid -f sh -c 'echo $$; setsid -f sh -c \"echo \\$\\$; sleep 1000\"; sleep 1000'; sleep 0.5",
        );
    }
    for command in commands {
        let ran = block_on(room.shell.run(call(json!({"command": command})).run));
        let started = pids(&text(&ran));
        assert!(!started.is_empty(), "{command}: {ran:?}");
        assert!(!started.iter().any(|pid| is_alive(*pid)), "{command}: {ran:?}");
    }
}

pub(crate) fn a_cancelled_command_says_what_it_has() {
    let room = Room::new();
    block_on(async {
        let call = call(json!({"command": STUBBORN}));
        let (printed, cancel) = (call.printed.clone(), call.cancel.clone());
        let run = tokio::spawn(room.shell.run(call.run));
        let started =
            until("it prints", || Some(pids(&printed.lock().unwrap())).filter(|pids| pids.len() == 2));
        let started = started.await;
        cancel.cancel();
        let ran = run.await.unwrap();
        assert_eq!(ran.outcome, Cancelled);
        assert_eq!(text(&ran), format!("{}\n{}\n[cancelled]", started[0], started[1]));
        assert!(!started.into_iter().any(is_alive));
    });
}

pub(crate) fn a_dropped_call_ends_its_command() {
    let room = Room::new();
    block_on(async {
        let call = call(json!({"command": STUBBORN}));
        let printed = call.printed.clone();
        let run = tokio::spawn(room.shell.run(call.run));
        let started =
            until("it prints", || Some(pids(&printed.lock().unwrap())).filter(|pids| pids.len() == 2));
        let started = started.await;
        run.abort();
        until("both are gone", || (!started.iter().any(|pid| is_alive(*pid))).then_some(())).await;
    });
}

/// A node that runs a command in the folder given to it, and prints the processes.
pub(crate) fn node(root: Option<&OsString>) -> ExitCode {
    let shell = shell_in(root.unwrap().as_ref());
    let mut call = call(json!({"command": STUBBORN}));
    call.run.printed = std::sync::Arc::new(|text| print!("{text}"));
    block_on(shell.run(call.run));
    ExitCode::SUCCESS
}

pub(crate) fn a_killed_node_takes_its_commands_along() {
    let room = Room::new();
    let mut node = Command::new(std::env::current_exe().unwrap())
        .arg("__node")
        .arg(&room.root)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(node.stdout.take().unwrap()).lines().take(2);
    let started: Vec<i32> = lines.map(|line| line.unwrap().parse().unwrap()).collect();
    assert!(started.iter().all(|pid| is_alive(*pid)));
    node.kill().unwrap();
    node.wait().unwrap();
    block_on(until("both are gone", || (!started.iter().any(|pid| is_alive(*pid))).then_some(())));
}

pub(crate) fn a_killed_guard_takes_its_command_along() {
    if !cfg!(target_os = "linux") {
        return;
    }
    let room = Room::new();
    // Its parent is the guard.
    let ran = block_on(room.shell.run(call(json!({"command": "echo $$; kill -9 $PPID; sleep 1000"})).run));
    assert_eq!(ran.outcome, Failed);
    let started = pids(&text(&ran));
    assert_eq!(started.len(), 1, "{ran:?}");
    block_on(until("it is gone", || (!is_alive(started[0])).then_some(())));
}

pub(crate) fn a_command_sees_no_other_variables() {
    let mut room = Room::new();
    room.shell.environment.set.insert("GREETING".to_owned(), "hello".to_owned());
    let ran = block_on(room.shell.run(call(json!({"command": "env"})).run));
    let text = text(&ran);
    assert!(text.contains("GREETING=hello\n") && text.contains("TERM=dumb\n"), "{text}");
    // What runs the tests sets it.
    assert!(std::env::var_os("CARGO_MANIFEST_DIR").is_some());
    assert!(!text.contains("CARGO_MANIFEST_DIR"), "{text}");
}

pub(crate) fn a_command_shows_no_secret() {
    let room = Room::new();
    std::fs::write(room.root.join(".env"), "KEY=sk-live-123456\n").unwrap();
    let command = "cat .env; printf sk-live; sleep 0.3; printf -- '-12'; sleep 0.3; echo 3456";
    let call = call(json!({"command": command}));
    let ran = block_on(room.shell.run(call.run));
    assert_eq!(text(&ran), "KEY=[secret]\n[secret]\n");
    assert_eq!(*call.printed.lock().unwrap(), "KEY=[secret]\n[secret]\n");
}

#[cfg(target_os = "linux")]
fn can_confine() -> bool {
    use landlock::{ABI, Access, AccessFs, CompatLevel, Compatible, Ruleset, RulesetAttr};
    let ruleset = Ruleset::default().set_compatibility(CompatLevel::HardRequirement);
    ruleset.handle_access(AccessFs::from_all(ABI::V1)).and_then(Ruleset::create).is_ok()
}

#[cfg(not(target_os = "linux"))]
fn can_confine() -> bool {
    false
}

pub(crate) fn a_confined_command_reaches_its_workspace() {
    if !can_confine() {
        return;
    }
    let mut room = Room::new();
    let home = room.root.with_file_name("home");
    std::fs::create_dir_all(home.join(".ssh")).unwrap();
    std::fs::create_dir_all(home.join(".rustup")).unwrap();
    std::fs::write(home.join(".ssh/key"), "very private").unwrap();
    std::fs::write(home.join(".rustup/settings"), "stable").unwrap();
    let mut confinement = Confinement::of_workspace(&room.root, Some(&home));
    // The test's folders lie in one of these.
    let scratch = std::env::temp_dir();
    confinement.write.retain(|folder| !scratch.starts_with(folder));
    confinement.read.retain(|folder| !scratch.starts_with(folder));
    room.shell.confinement = Some(confinement);
    let said = |command: String| {
        let ran = block_on(room.shell.run(call(json!({"command": command})).run));
        (ran.outcome, text(&ran))
    };
    let shown = home.display();
    assert_eq!(said("echo x > a && cat a && rm a && mkdir b && ls".to_owned()), (Done, "x\nb\n".into()));
    assert_eq!(said(format!("cat {shown}/.rustup/settings")), (Done, "stable".into()));
    for refused in [
        format!("cat {shown}/.ssh/key"),
        format!("ls {shown}"),
        format!("echo x > {shown}/.rustup/settings"),
        format!("echo x > {shown}/new"),
        format!("ln -s {shown}/.ssh/key key; cat key"),
    ] {
        let (outcome, text) = said(refused.clone());
        assert!(outcome == Failed && text.contains("ermission denied"), "{refused}: {text}");
    }
    assert_eq!(said("sleep 1000 & kill $! && echo own".to_owned()), (Done, "own\n".into()));
}

pub(crate) fn a_guard_that_is_none_is_said() {
    let mut room = Room::new();
    room.shell.guard = Guard { program: "/nonexistent/guard".into(), arguments: vec![] };
    let ran = block_on(room.shell.run(call(json!({"command": "true"})).run));
    assert!(ran.outcome == Failed && text(&ran).contains("could not be started"), "{ran:?}");
}
