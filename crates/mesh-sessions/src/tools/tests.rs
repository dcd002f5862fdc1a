//! The file tools on real folders.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use mesh_identity::NodeKey;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::*;
use crate::content::ToolOutcome;
use crate::event::Party;
use crate::ids::SessionId;
use crate::model::Shown;
use crate::tool::{Ran, Tool, ToolRun};

/// A call of a tool by nobody in particular.
pub(crate) fn call(arguments: Value) -> ToolRun {
    ToolRun {
        session: SessionId::from_uuid(Uuid::now_v7()),
        call: "call-1".parse().expect("an id"),
        arguments,
        on_behalf_of: Party { node: NodeKey::from_seed([7; 32]).node_id(), scope: None, role: None },
        printed: Arc::new(|_| {}),
        cancel: CancellationToken::new(),
    }
}

pub(crate) fn text(ran: &Ran) -> String {
    let texts = ran.parts.iter().map(|part| match part {
        Shown::Text(text) => text.as_str(),
        Shown::Image { .. } => "[image]",
    });
    texts.collect()
}

struct Room {
    _folder: tempfile::TempDir,
    root: std::path::PathBuf,
    outside: std::path::PathBuf,
    files: Files,
}

impl Room {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let real = folder.path().canonicalize().expect("a folder");
        let (root, outside) = (real.join("work"), real.join("outside"));
        std::fs::create_dir_all(&root).expect("created");
        std::fs::create_dir_all(&outside).expect("created");
        std::fs::write(outside.join("key"), "very private\n").expect("written");
        let files = Files {
            workspace: Workspace::open(&root).expect("a workspace"),
            secrets: Secrets::new(["sk-live-123456".to_owned()]),
            limits: FileLimits::default(),
        };
        Self { _folder: folder, root, outside, files }
    }

    fn put(&self, path: &str, content: impl AsRef<[u8]>) {
        let path = self.root.join(path);
        std::fs::create_dir_all(path.parent().expect("a parent")).expect("created");
        std::fs::write(path, content).expect("written");
    }

    fn content(&self, path: &str) -> String {
        std::fs::read_to_string(self.root.join(path)).expect("a text")
    }

    fn tool(&self, name: &str) -> Arc<dyn Tool> {
        self.files.tools().into_iter().find(|tool| tool.spec().name == name).expect("a tool")
    }

    async fn run(&self, name: &str, arguments: Value) -> Ran {
        self.tool(name).run(call(arguments)).await
    }

    async fn done(&self, name: &str, arguments: Value) -> String {
        let ran = self.run(name, arguments).await;
        assert_eq!(ran.outcome, ToolOutcome::Done, "{ran:?}");
        text(&ran)
    }

    async fn failed(&self, name: &str, arguments: Value) -> String {
        let ran = self.run(name, arguments).await;
        assert_eq!(ran.outcome, ToolOutcome::Failed, "{ran:?}");
        text(&ran)
    }
}

#[tokio::test]
async fn lines_are_read_with_their_numbers_and_in_parts() {
    let room = Room::new();
    let lines: String = (1..=5000).map(|number| format!("line {number}\r\n")).collect();
    room.put("src/a.txt", lines);
    let all = room.done("read_file", json!({"path": "src/a.txt", "limit": 2})).await;
    assert_eq!(all, "     1\tline 1\n     2\tline 2\n[lines 1-2 of 5000; go on with offset 3]");
    let end = room.done("read_file", json!({"path": "./src/../src/a.txt", "offset": 4999})).await;
    assert_eq!(end, "  4999\tline 4999\n  5000\tline 5000\n[lines 4999-5000 of 5000]");
    let absolute = room.root.join("src/a.txt");
    let part = room.done("read_file", json!({"path": absolute, "offset": 3, "limit": 1})).await;
    assert_eq!(part, "     3\tline 3\n[lines 3-3 of 5000; go on with offset 4]");
    let beyond = room.failed("read_file", json!({"path": "src/a.txt", "offset": 6000})).await;
    assert_eq!(beyond, "src/a.txt has only 5000 lines");
    room.put("short", "one\ntwo");
    assert_eq!(room.done("read_file", json!({"path": "short"})).await, "     1\tone\n     2\ttwo");
    room.put("empty", "");
    assert_eq!(room.done("read_file", json!({"path": "empty"})).await, "[the file is empty]");
}

#[tokio::test]
async fn odd_files_are_said_to_be_odd() {
    let room = Room::new();
    room.put("blob", b"ab\0cd");
    assert_eq!(room.failed("read_file", json!({"path": "blob"})).await, "blob is a binary file of 5 bytes");
    room.put("latin", b"caf\xe9\nx");
    let latin = room.done("read_file", json!({"path": "latin"})).await;
    assert!(latin.starts_with("     1\tcaf\u{fffd}\n"), "{latin}");
    assert!(latin.contains("not all UTF-8"), "{latin}");
    room.put("long", "x".repeat(3_000_000) + "\nend\n");
    let long = room.done("read_file", json!({"path": "long"})).await;
    assert!(long.len() < 5000 && long.ends_with("     2\tend"), "{long}");
    assert_eq!(room.failed("read_file", json!({"path": "none"})).await, "none does not exist");
    assert_eq!(room.failed("read_file", json!({"path": "."})).await, ". is a folder, not a file");
    let wrong = room.failed("read_file", json!("{bad json")).await;
    assert_eq!(wrong, "the arguments are not a JSON object");
    let wrong = room.failed("read_file", json!({"file": "latin"})).await;
    assert!(wrong.contains("unknown field `file`, expected"), "{wrong}");
}

#[tokio::test]
async fn a_result_is_bounded_whatever_the_file() {
    let room = Room::new();
    // A hole of a terabyte: it takes no space and ends no test.
    let file = std::fs::File::create(room.root.join("hole")).expect("created");
    file.set_len(1 << 40).expect("a hole");
    assert!(room.failed("read_file", json!({"path": "hole"})).await.contains("binary file"));
    assert!(room.done("search", json!({"pattern": "x"})).await.contains("1 binary or very large files"));
    let old = json!({"path": "hole", "old_string": "a", "new_string": "b"});
    assert!(room.failed("edit", old).await.contains("the bound is 8388608"));
    room.put("wide", "0123456789".repeat(100).repeat(1000).replace("99999", "\n"));
    room.put("text", "some words in a line\n".repeat(1_000_000));
    for path in ["wide", "text"] {
        let ran = room.done("read_file", json!({"path": path, "limit": 100_000_000})).await;
        assert!(ran.len() <= 48 * 1024 + 200, "{}", ran.len());
    }
    let ran = room.done("read_file", json!({"path": "text", "limit": 100_000_000})).await;
    assert!(ran.contains("of 1000000; go on with offset"), "{}", &ran[ran.len() - 100..]);
    room.put("words", "some words in a line\n".repeat(100_000));
    let ran = room.done("search", json!({"pattern": "words", "limit": 1000})).await;
    assert!(ran.len() <= 48 * 1024 + 200 && ran.contains("[more than these 1000 matches"), "{}", ran.len());
}

#[tokio::test]
async fn no_path_leads_outside() {
    let room = Room::new();
    symlink("../outside", room.root.join("out")).expect("a link");
    symlink(&room.outside, room.root.join("far")).expect("a link");
    symlink("../outside/key", room.root.join("key")).expect("a link");
    symlink("/etc/passwd", room.root.join("passwd")).expect("a link");
    room.put("in/x", "x");
    symlink("../..", room.root.join("in/up")).expect("a link");
    let outside_key = room.outside.join("key");
    let absolute = outside_key.to_str().expect("a name");
    let paths = [
        "../outside/key",
        "in/../../outside/key",
        "out/key",
        "far/key",
        "key",
        "passwd",
        "in/up/outside/key",
        "/etc/passwd",
        absolute,
    ];
    for path in paths {
        let refused = |why: String| assert!(why.contains("leads out of the workspace"), "{path}: {why}");
        refused(room.failed("read_file", json!({"path": path})).await);
        refused(room.failed("write_file", json!({"path": path, "content": "mine"})).await);
        let change = json!({"path": path, "old_string": "very", "new_string": "not"});
        refused(room.failed("edit", change).await);
        refused(room.failed("search", json!({"path": path, "pattern": "private"})).await);
        refused(room.failed("list", json!({"path": path})).await);
    }
    for path in ["out/new", "far/deep/new", "../new", "in/up/new"] {
        room.failed("write_file", json!({"path": path, "content": "mine"})).await;
    }
    for path in ["out", "far", "..", "in/up"] {
        let why = room.failed("list", json!({"path": path})).await;
        assert!(why.contains("leads out of the workspace"), "{path}: {why}");
    }
    let escaped: Vec<_> = std::fs::read_dir(&room.outside).expect("readable").collect();
    assert_eq!(escaped.len(), 1, "{escaped:?}");
    assert_eq!(std::fs::read_to_string(&outside_key).expect("a text"), "very private\n");
    let found = room.done("search", json!({"pattern": "private|root:"})).await;
    assert_eq!(found, "[no match]", "a walk does not follow links");
    let listed = room.done("list", json!({"depth": 9})).await;
    assert!(listed.contains("out -> ../outside"), "{listed}");
    assert!(!listed.contains("out/key"), "{listed}");
}

#[tokio::test]
async fn links_inside_are_followed_and_kept() {
    let room = Room::new();
    room.put("real/a", "old");
    symlink("real", room.root.join("folder")).expect("a link");
    symlink("real/a", room.root.join("file")).expect("a link");
    assert_eq!(room.done("read_file", json!({"path": "folder/a"})).await, "     1\told");
    room.done("write_file", json!({"path": "file", "content": "new"})).await;
    assert_eq!(room.content("real/a"), "new");
    assert!(room.root.join("file").is_symlink());
    symlink("nowhere", room.root.join("dangling")).expect("a link");
    room.failed("write_file", json!({"path": "dangling", "content": "x"})).await;
    assert!(!room.root.join("nowhere").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn links_swapped_in_between_lead_nowhere_either() {
    let room = Room::new();
    room.put("real/key", "harmless\n");
    let (root, outside) = (room.root.clone(), room.outside.clone());
    // There from the beginning: a tool that writes makes the folders that are not.
    symlink("real", root.join("swap")).expect("a link");
    room.put("file", "harmless\n");
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = stop.clone();
    let swapper = std::thread::spawn(move || {
        let mut swaps = 0u32;
        while !stopped.load(Ordering::Relaxed) {
            for target in [outside.as_path(), Path::new("real")] {
                symlink(target, root.join("next")).expect("a link");
                std::fs::rename(root.join("next"), root.join("swap")).expect("swapped");
            }
            symlink(outside.join("key"), root.join("next")).expect("a link");
            std::fs::rename(root.join("next"), root.join("file")).expect("swapped");
            std::fs::write(root.join("next"), "harmless\n").expect("written");
            std::fs::rename(root.join("next"), root.join("file")).expect("swapped");
            swaps += 1;
        }
        swaps
    });
    let mut seen = [0; 2];
    for round in 0..150 {
        let ran =
            room.run("read_file", json!({"path": if round % 2 == 0 { "swap/key" } else { "file" }})).await;
        assert!(!text(&ran).contains("private"), "{ran:?}");
        seen[usize::from(ran.outcome == ToolOutcome::Done)] += 1;
        let _ = room.run("write_file", json!({"path": "swap/new", "content": "mine"})).await;
        let change = json!({"path": "swap/key", "old_string": "private", "new_string": "stolen"});
        assert!(!text(&room.run("edit", change).await).contains("changed"));
        let ran = room.run("search", json!({"pattern": "private"})).await;
        assert!(!text(&ran).contains("very private"), "{ran:?}");
    }
    stop.store(true, Ordering::Relaxed);
    assert!(swapper.join().expect("no panic") > 0);
    let left: Vec<_> = std::fs::read_dir(&room.outside).expect("readable").collect();
    assert_eq!(left.len(), 1, "{left:?}");
    assert_eq!(std::fs::read_to_string(room.outside.join("key")).expect("a text"), "very private\n");
}

#[tokio::test]
async fn pipes_and_devices_are_refused_and_not_waited_for() {
    let room = Room::new();
    let pipe = room.root.join("pipe");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status().expect("mkfifo");
    assert!(made.success());
    let _socket = std::os::unix::net::UnixListener::bind(room.root.join("socket")).expect("a socket");
    for (path, what) in [("pipe", "a pipe"), ("socket", "a socket")] {
        let why = format!("{path} is {what}, not a file");
        assert_eq!(room.failed("read_file", json!({"path": path})).await, why);
        assert_eq!(room.failed("write_file", json!({"path": path, "content": "x"})).await, why);
        let change = json!({"path": path, "old_string": "a", "new_string": "b"});
        assert_eq!(room.failed("edit", change).await, why);
        assert_eq!(room.failed("search", json!({"path": path, "pattern": "x"})).await, why);
    }
    assert_eq!(room.done("search", json!({"pattern": "x"})).await, "[no match]");
    assert_eq!(room.done("list", json!({})).await, "pipe  (no file)\nsocket  (no file)");
    let devices =
        Files { workspace: Workspace::open(Path::new("/dev")).expect("open"), ..room.files.clone() };
    let read = devices.tools().swap_remove(0).run(call(json!({"path": "zero"}))).await;
    assert_eq!(text(&read), "zero is a device, not a file");
}

#[tokio::test]
async fn the_workspace_stays_the_folder_that_was_opened() {
    let room = Room::new();
    room.put("a", "mine");
    let moved = room.root.with_file_name("moved");
    std::fs::rename(&room.root, &moved).expect("moved");
    symlink(&room.outside, &room.root).expect("a link in its place");
    assert_eq!(room.done("read_file", json!({"path": "a"})).await, "     1\tmine");
    room.failed("read_file", json!({"path": "key"})).await;
}

#[tokio::test]
async fn files_are_created_replaced_and_keep_their_permissions() {
    let room = Room::new();
    let said = room.done("write_file", json!({"path": "a/b/c.sh", "content": "#!/bin/sh\n"})).await;
    assert_eq!(said, "created a/b/c.sh (10 bytes)");
    let path = room.root.join("a/b/c.sh");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o750)).expect("set");
    let said = room.done("write_file", json!({"path": "a/b/c.sh", "content": "exit 1"})).await;
    assert_eq!(said, "replaced a/b/c.sh (6 bytes)");
    assert_eq!(room.content("a/b/c.sh"), "exit 1");
    assert_eq!(std::fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o750);
    for path in ["", ".", "a", "a/b/..", "a/"] {
        let why = room.failed("write_file", json!({"path": path, "content": "x"})).await;
        assert!(why.contains("a folder, not a file"), "{path}: {why}");
    }
    let why = room.failed("write_file", json!({"path": "a/b/c.sh/d", "content": "x"})).await;
    assert!(why.contains("c.sh/d"), "{why}");
    let long = "n".repeat(300);
    room.failed("write_file", json!({"path": long, "content": "x"})).await;
    room.failed("write_file", json!({"path": "nul\0byte", "content": "x"})).await;
    let left = room.done("list", json!({"depth": 5})).await;
    assert_eq!(left, "a/\na/b/\na/b/c.sh  6", "no temporary file is left");
}

#[tokio::test]
async fn hooks_of_git_are_not_for_writing() {
    let room = Room::new();
    room.put(".git/config", "[core]\n");
    symlink(".git", room.root.join("innocent")).expect("a link");
    for path in [".git/hooks/pre-commit", ".git/config", "sub/.git/config", "innocent/config", ".GIT/config"]
    {
        let why = room.failed("write_file", json!({"path": path, "content": "x"})).await;
        assert!(why.contains("belongs to git"), "{path}: {why}");
    }
    assert_eq!(room.content(".git/config"), "[core]\n");
    assert!(!room.root.join("sub").exists());
    assert_eq!(room.done("read_file", json!({"path": ".git/config"})).await, "     1\t[core]");
}

#[tokio::test]
async fn an_edit_is_exact_and_unique() {
    let room = Room::new();
    room.put("a.rs", "fn one() {}\nfn two() {}\nfn two() {}\n");
    let edit = |old: &str, new: &str| json!({"path": "a.rs", "old_string": old, "new_string": new});
    assert_eq!(room.done("edit", edit("one", "three")).await, "changed a.rs in 1 place: line 1");
    let why = room.failed("edit", edit("two", "four")).await;
    assert!(why.contains("2 times (lines 2, 3)"), "{why}");
    let why = room.failed("edit", edit("fn  two", "x")).await;
    assert!(why.contains("old_string is not in a.rs"), "{why}");
    room.failed("edit", edit("", "x")).await;
    room.failed("edit", edit("two", "two")).await;
    assert_eq!(room.content("a.rs"), "fn three() {}\nfn two() {}\nfn two() {}\n");
    let all = json!({"path": "a.rs", "old_string": "two", "new_string": "", "replace_all": true});
    assert_eq!(room.done("edit", all).await, "changed a.rs in 2 places: lines 2, 3");
    assert_eq!(room.content("a.rs"), "fn three() {}\nfn () {}\nfn () {}\n");
    let why = room.failed("edit", json!({"path": "b", "old_string": "a", "new_string": "b"})).await;
    assert_eq!(why, "b does not exist");
}

#[tokio::test]
async fn an_edit_keeps_line_breaks_and_other_bytes() {
    let room = Room::new();
    room.put("crlf", "one\r\ntwo\r\nthree\r\n");
    room.done("edit", json!({"path": "crlf", "old_string": "one\ntwo", "new_string": "1\n2"})).await;
    assert_eq!(room.content("crlf"), "1\r\n2\r\nthree\r\n");
    room.put("latin", b"caf\xe9 noir");
    room.done("edit", json!({"path": "latin", "old_string": "noir", "new_string": "au lait"})).await;
    assert_eq!(std::fs::read(room.root.join("latin")).expect("there"), b"caf\xe9 au lait");
    room.put("blob", b"a\0b");
    let why = room.failed("edit", json!({"path": "blob", "old_string": "a", "new_string": "c"})).await;
    assert_eq!(why, "blob is a binary file");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn edits_at_the_same_time_lose_nothing() {
    let room = Arc::new(Room::new());
    let marks: Vec<String> = (0..40).map(|number| format!("<{number}>")).collect();
    room.put("a", marks.join("\n"));
    let edits = marks.iter().map(|mark| {
        let (room, mark) = (room.clone(), mark.clone());
        tokio::spawn(async move {
            let change = json!({"path": "a", "old_string": mark, "new_string": "done"});
            room.done("edit", change).await
        })
    });
    for edit in edits.collect::<Vec<_>>() {
        edit.await.expect("no panic");
    }
    assert_eq!(room.content("a"), vec!["done"; 40].join("\n"));
}

#[test]
fn what_somebody_else_changed_meanwhile_is_not_overwritten() {
    let room = Room::new();
    room.put("a", "old");
    let path = room.root.join("a");
    let written = room.files.workspace.replace("a", 100, |_| -> Result<_, PathError> {
        std::fs::write(&path, "by a person").expect("written");
        Ok(b"by a tool".to_vec())
    });
    assert!(matches!(written, Err(PathError::Changed { .. })), "{written:?}");
    assert_eq!(room.content("a"), "by a person");
    let fresh = room.root.join("b");
    let written = room.files.workspace.replace("b", 100, |_| -> Result<_, PathError> {
        std::fs::write(&fresh, "by a person").expect("written");
        Ok(b"by a tool".to_vec())
    });
    assert!(matches!(written, Err(PathError::Changed { .. })), "{written:?}");
    assert_eq!(std::fs::read_dir(&room.root).expect("there").count(), 2, "no temporary file is left");
}

#[tokio::test]
async fn secrets_are_neither_shown_nor_overwritten() {
    let room = Room::new();
    room.put(".env", "KEY=sk-live-123456\nOTHER=1\n");
    let long = format!("{}sk-live-123456", "x".repeat(1995));
    room.put("long", &long);
    assert_eq!(
        room.done("read_file", json!({"path": ".env"})).await,
        "     1\tKEY=[secret]\n     2\tOTHER=1"
    );
    assert!(!room.done("read_file", json!({"path": "long"})).await.contains("sk-"), "not even cut in two");
    let found = room.done("search", json!({"pattern": "KEY"})).await;
    assert_eq!(found, ".env:1:KEY=[secret]");
    let whole = json!({"path": ".env", "content": "KEY=[secret]\nOTHER=2\n"});
    assert!(room.failed("write_file", whole).await.contains("would be written over it"));
    let part = json!({"path": ".env", "old_string": "OTHER=1", "new_string": "OTHER=2"});
    room.done("edit", part).await;
    assert_eq!(room.content(".env"), "KEY=sk-live-123456\nOTHER=2\n");
}

#[tokio::test]
async fn folders_are_listed() {
    let room = Room::new();
    room.put(".gitignore", "target\n*.log\n!keep.log\n");
    room.put("src/main.rs", "fn main() {}");
    room.put("src/deep/.gitignore", "local\n");
    room.put("src/deep/local", "");
    room.put("src/deep/lib.rs", "");
    room.put("target/debug/x.rs", "");
    room.put("a.log", "");
    room.put("keep.log", "");
    room.put(".git/HEAD", "");
    let top = room.done("list", json!({})).await;
    assert_eq!(top, ".gitignore  23\na.log  0\nkeep.log  0\nsrc/\ntarget/");
    let deep = room.done("list", json!({"depth": 3})).await;
    let expected = ".gitignore  23\nkeep.log  0\nsrc/\nsrc/deep/\nsrc/deep/.gitignore  6\nsrc/deep/lib.rs  0\n\
        src/main.rs  12";
    assert_eq!(deep, expected);
    assert_eq!(room.done("list", json!({"glob": "*.rs"})).await, "src/deep/lib.rs  0\nsrc/main.rs  12");
    assert_eq!(room.done("list", json!({"glob": "src/*.rs"})).await, "src/main.rs  12");
    assert_eq!(
        room.done("list", json!({"path": "src", "glob": "*.rs", "depth": 1})).await,
        "src/main.rs  12"
    );
    assert_eq!(room.done("list", json!({"path": "src/deep", "depth": 2})).await.lines().count(), 2);
    assert_eq!(room.done("list", json!({"glob": "*.c"})).await, "[no file fits the glob]");
    assert!(room.failed("list", json!({"glob": "a{b"})).await.contains("is not a glob"));
    assert_eq!(room.failed("list", json!({"path": "a.log"})).await, "a.log is not a folder");
}

#[tokio::test]
async fn a_huge_folder_is_listed_in_part() {
    let room = Room::new();
    for number in 0..3000 {
        room.put(&format!("n{number:04}"), "");
    }
    let listed = room.done("list", json!({})).await;
    assert_eq!(listed.lines().count(), 1001);
    assert!(listed.ends_with("[more than these 1000; name a folder below or a glob]"), "{listed}");
    let mut deep = "d/".repeat(100);
    deep.push('x');
    room.put(&deep, "needle");
    let found = room.done("search", json!({"pattern": "needle", "path": "d"})).await;
    assert_eq!(found, "[no match][1 folders too deep or too large to be seen whole]");
}

#[tokio::test]
async fn lines_are_found() {
    let room = Room::new();
    room.put("src/a.rs", "use x;\nfn alpha() {}\n\nfn beta() {}\n\n\nfn gamma() {}\n");
    room.put("src/b.txt", "fn in text\r\nFN upper\r\n");
    room.put("ignored/c.rs", "fn hidden() {}\n");
    room.put(".ignore", "/ignored\n");
    room.put("bin", b"fn \0 binary");
    let search = |arguments: Value| room.done("search", arguments);
    let found = search(json!({"pattern": "^fn \\w+", "glob": "*.rs"})).await;
    assert_eq!(found, "src/a.rs:2:fn alpha() {}\nsrc/a.rs:4:fn beta() {}\nsrc/a.rs:7:fn gamma() {}");
    let found = search(json!({"pattern": "^fn.*text$|upper", "ignore_case": true})).await;
    let left_out = "[1 binary or very large files left out]";
    assert_eq!(found, format!("src/b.txt:1:fn in text\nsrc/b.txt:2:FN upper\n{left_out}"));
    let found = search(json!({"pattern": "beta", "context": 1, "path": "src/a.rs"})).await;
    assert_eq!(found, "src/a.rs-3-\nsrc/a.rs:4:fn beta() {}\nsrc/a.rs-5-");
    let found = search(json!({"pattern": "alpha|beta|gamma", "context": 1, "path": "src"})).await;
    let expected = "src/a.rs-1-use x;\nsrc/a.rs:2:fn alpha() {}\nsrc/a.rs-3-\nsrc/a.rs:4:fn beta() {}\n\
        src/a.rs-5-\nsrc/a.rs-6-\nsrc/a.rs:7:fn gamma() {}";
    assert_eq!(found, expected);
    let found = search(json!({"pattern": "use|gamma", "context": 1, "path": "src"})).await;
    assert!(found.contains("src/a.rs-2-fn alpha() {}\n--\nsrc/a.rs-6-"), "{found}");
    let found = search(json!({"pattern": "fn", "files_only": true, "path": "src"})).await;
    assert_eq!(found, "src/a.rs\nsrc/b.txt");
    let found = search(json!({"pattern": "fn", "limit": 2, "path": "src"})).await;
    let more = "[more than these 2 matches; narrow it down]";
    assert_eq!(found, format!("src/a.rs:2:fn alpha() {{}}\nsrc/a.rs:4:fn beta() {{}}\n{more}"));
    let found = search(json!({"pattern": "$", "path": "src/a.rs", "limit": 100})).await;
    assert_eq!(found.lines().count(), 7, "{found}");
    let why = room.failed("search", json!({"pattern": "(unclosed"})).await;
    assert!(why.contains("no regular expression"), "{why}");
    let why = room.failed("search", json!({"pattern": "(\\w{1000}){1000}"})).await;
    assert!(why.contains("no regular expression"), "{why}");
}

#[tokio::test]
async fn a_long_walk_ends_with_its_time_and_with_its_caller() {
    let room = Room::new();
    for number in 0..200 {
        room.put(&format!("n{number}/x"), "words\n".repeat(100));
    }
    let hasty =
        Files { limits: FileLimits { walk: Duration::ZERO, ..FileLimits::default() }, ..room.files.clone() };
    let search = hasty.tools().pop().expect("search");
    let ran = search.run(call(json!({"pattern": "nothing"}))).await;
    assert_eq!(text(&ran), "[not all: time was up after 0 matches]");
    for tool in ["search", "list", "read_file", "write_file", "edit"] {
        let arguments = match tool {
            "search" => json!({"pattern": "words"}),
            "list" => json!({"depth": 2}),
            "read_file" => json!({"path": "n1/x"}),
            "write_file" => json!({"path": "n1/x", "content": "gone"}),
            _ => json!({"path": "n1/x", "old_string": "words", "new_string": "gone", "replace_all": true}),
        };
        let run = call(arguments);
        run.cancel.cancel();
        assert_eq!(room.tool(tool).run(run).await.outcome, ToolOutcome::Cancelled, "{tool}");
    }
    assert!(room.content("n1/x").starts_with("words"));
}

/// Works until it is cancelled.
struct Endless;

static ENDED: AtomicBool = AtomicBool::new(false);

impl files::Work for Endless {
    const NAME: &'static str = "endless";
    const DESCRIPTION: &'static str = "";
    const ONLY_READS: bool = true;
    type Arguments = Value;

    fn parameters() -> (Value, Value) {
        (json!({}), json!([]))
    }

    fn work(_: &Files, _: Value, cancel: &CancellationToken) -> Result<String, files::Fault> {
        while !cancel.is_cancelled() {
            std::thread::yield_now();
        }
        ENDED.store(true, Ordering::SeqCst);
        Err(files::Fault::Cancelled)
    }
}

#[test]
fn dropping_a_call_ends_its_thread() {
    let room = Room::new();
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(async {
        let mut run = files::FileTool::<Endless>::shared(&room.files).run(call(json!({})));
        assert!(futures_util::poll!(&mut run).is_pending());
    });
    // It waits for its threads.
    drop(runtime);
    assert!(ENDED.load(Ordering::SeqCst));
}

#[tokio::test]
async fn specs_are_objects_that_forbid_other_arguments() {
    let room = Room::new();
    for tool in room.files.tools() {
        let spec = tool.spec();
        assert_eq!(spec.parameters["type"], "object");
        assert_eq!(spec.parameters["additionalProperties"], false);
        let required = spec.parameters["required"].as_array().expect("a list").clone();
        for name in required {
            assert!(spec.parameters["properties"].get(name.as_str().expect("a name")).is_some(), "{name}");
        }
        let reads = matches!(spec.name.as_str(), "read_file" | "list" | "search");
        assert_eq!(tool.only_reads(&json!({})), reads, "{}", spec.name);
    }
}
