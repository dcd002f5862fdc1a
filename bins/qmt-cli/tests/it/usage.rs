//! What can be said without a node: help, wrong usage, that none is running.

use crate::support::{CLI, cli, program};

/// Every command, with arguments that it takes.
const COMMANDS: &[&[&str]] = &[
    &["invite"],
    &["invites"],
    &["revoke", "lap"],
    &["join", "token"],
    &["leave", "home"],
    &["status"],
    &["nodes"],
    &["ping", "lap"],
    &["models"],
    &["models", "list"],
    &["load", "gemma"],
    &["plan", "gemma"],
    &["unload", "gemma"],
    &["drop", "gemma"],
    &["routes"],
    &["routes", "agents"],
    &["routes", "set", "coder", "--local"],
    &["board", "list"],
    &["chat", "hello"],
    &["doctor"],
    &["setup"],
];

#[tokio::test]
async fn help_lists_every_command_and_exit_code() {
    let home = tempfile::tempdir().expect("a folder");
    let help = cli(home.path(), &["--help"]).run().await;
    assert_eq!((help.code, help.err.as_str()), (0, ""));
    for command in COMMANDS {
        let listed = format!("\n  {} ", command[0]);
        assert!(help.out.contains(&listed), "{} is not in the help", command[0]);
        let own = cli(home.path(), &[command[0], "--help"]).run().await;
        assert!(own.code == 0 && own.out.contains("Usage: qmt-cli "), "{own:?}");
    }
    for line in [
        "0    done",
        "1    the node refused",
        "2    wrong usage",
        "3    no node is running",
        "130  ended by Ctrl-C",
    ] {
        assert!(help.out.contains(line), "{line} is not in the help");
    }
}

#[tokio::test]
async fn the_page_of_commands_knows_each_of_them() {
    let home = tempfile::tempdir().expect("a folder");
    let page =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/cli.md")).expect("the page");
    let help = cli(home.path(), &["--help"]).run().await.out;
    let listed = help.split("Commands:").nth(1).and_then(|rest| rest.split("\n\n").next()).expect("a list");
    let names: Vec<&str> = listed.lines().filter_map(|line| line.split_whitespace().next()).collect();
    assert!(names.len() > 14 && names.contains(&"chat"), "{names:?}");
    for name in names.into_iter().filter(|name| *name != "help") {
        assert!(page.contains(&format!("\n| `{name}")), "docs/cli.md lacks {name}");
    }
}

#[tokio::test]
async fn without_a_node_every_command_says_how_to_start_one() {
    let home = tempfile::tempdir().expect("a folder");
    for command in COMMANDS.iter().filter(|command| !["doctor", "setup"].contains(&command[0])) {
        let ran = cli(home.path(), command).run().await;
        assert_eq!((ran.code, ran.out.as_str()), (3, ""), "{command:?}: {ran:?}");
        assert!(ran.err.starts_with("error: no node is running at "), "{ran:?}");
        assert!(ran.err.ends_with("mend: start one with `qmt-node`\n"), "{ran:?}");

        let args: Vec<&str> = command.iter().copied().chain(["--json"]).collect();
        let ran = cli(home.path(), &args).run().await;
        assert_eq!((ran.code, ran.err.as_str()), (3, ""), "{command:?}: {ran:?}");
        let error = &ran.json()["error"];
        assert_eq!(
            (&error["code"], &error["mend"]),
            (&"no_node".into(), &"start one with `qmt-node`".into())
        );
    }
}

#[tokio::test]
async fn wrong_usage_is_exit_code_2() {
    let home = tempfile::tempdir().expect("a folder");
    let wrong: &[&[&str]] = &[
        &[],
        &["dance"],
        &["invite", "--role", "emperor"],
        &["invite", "--ttl", "7x"],
        &["invite", "--uses", "-1"],
        &["ping", "lap", "--count", "0"],
        &["ping", "lap", "-n", "5"],
        &["join"],
        &["load"],
        &["models", "pull"],
        &["chat", "--temperature", "warm", "hi"],
        &["setup", "--model-only", "--bin-dir", "/bin"],
    ];
    for args in wrong {
        let ran = cli(home.path(), args).run().await;
        assert_eq!((ran.code, ran.out.as_str()), (2, ""), "{args:?}: {ran:?}");
        assert!(!ran.err.is_empty(), "{args:?}");

        let args: Vec<&str> = args.iter().copied().chain(["--json"]).collect();
        let ran = cli(home.path(), &args).run().await;
        assert_eq!((ran.code, ran.err.as_str()), (2, ""), "{args:?}: {ran:?}");
        let error = &ran.json()["error"];
        assert_eq!(error["code"], "usage", "{args:?}");
        assert!(error["message"].as_str().is_some_and(|text| !text.is_empty()), "{args:?}");
    }
    let ran = cli(home.path(), &["join", "-"]).input(" \n").run().await;
    assert_eq!((ran.code, ran.err.as_str()), (2, "error: standard input holds no invite\n"));
    let ran = cli(home.path(), &["chat"]).input("\n").run().await;
    assert_eq!((ran.code, ran.err.as_str()), (2, "error: the prompt is empty\n"));
}

#[tokio::test]
async fn a_home_is_needed() {
    let home = tempfile::tempdir().expect("a folder");
    let ran = program(CLI.as_ref(), home.path(), &["status"]).env("QMT_HOME", "").env("HOME", "").run().await;
    assert_eq!(ran.code, 2);
    assert!(ran.err.contains("set QMT_HOME"), "{ran:?}");
}

#[tokio::test]
async fn a_home_too_deep_for_a_socket_is_named() {
    let home = std::env::temp_dir().join("x".repeat(120));
    let ran = cli(&home, &["status"]).run().await;
    assert_eq!(ran.code, 1);
    assert!(ran.err.ends_with("mend: set QMT_HOME to a shorter path\n"), "{ran:?}");
}

#[tokio::test]
async fn setup_says_what_is_missing_and_changes_nothing_when_asked_to_check() {
    let (home, models) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let models = models.path().to_str().expect("text");
    let setup = |args: &[&str]| {
        let args: Vec<&str> = ["setup", "--check"].iter().chain(args).copied().collect();
        cli(home.path(), &args).env("QMT_MODELS", models)
    };
    let ran = setup(&["--model-only"]).run().await;
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(
        ran.out.contains("missing: model: ") && ran.out.contains("mend: qmt-cli setup --model-only"),
        "{ran:?}"
    );
    let ran = setup(&["--json"]).run().await;
    assert_eq!((ran.code, ran.err.as_str()), (1, ""));
    assert_eq!(ran.json()["error"]["code"], "setup");
    let left = std::fs::read_dir(home.path()).expect("the home").count();
    assert_eq!(left, 0, "nothing was made");
}

#[tokio::test]
async fn a_context_of_no_tokens_is_wrong_usage() {
    let home = tempfile::tempdir().expect("a folder");
    for tokens in ["0", "16777217", "many"] {
        let ran = cli(home.path(), &["plan", "gemma", "--ctx-size", tokens]).run().await;
        assert!(ran.code == 2 && ran.err.contains("--ctx-size"), "{ran:?}");
    }
}
