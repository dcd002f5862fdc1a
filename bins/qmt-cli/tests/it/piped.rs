//! The binary as a server on pipes, line by line.

use std::path::Path;
use std::process::Stdio;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::time::timeout;

use crate::support::{CLI, DEADLINE};

pub(crate) struct Piped {
    child: Child,
    input: Option<ChildStdin>,
    lines: Lines<BufReader<ChildStdout>>,
    /// What came while something else was waited for.
    pub(crate) seen: Vec<Value>,
}

impl Piped {
    pub(crate) fn start(home: &Path, args: &[&str]) -> Self {
        let mut child = Command::new(CLI)
            .args(args)
            .env("QMT_HOME", home)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("the binary starts");
        let output = child.stdout.take().expect("piped");
        let input = child.stdin.take();
        Self { child, input, lines: BufReader::new(output).lines(), seen: Vec::new() }
    }

    pub(crate) async fn raw(&mut self, bytes: &[u8]) {
        let input = self.input.as_mut().expect("open");
        timeout(DEADLINE, input.write_all(bytes)).await.expect("in time").expect("it reads");
    }

    pub(crate) async fn send(&mut self, message: Value) {
        self.raw(format!("{message}\n").as_bytes()).await;
    }

    pub(crate) async fn request(&mut self, id: u64, method: &str, params: Value) {
        self.send(json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params})).await;
    }

    /// The next line, which is JSON like every line.
    pub(crate) async fn next(&mut self) -> Value {
        let line = timeout(DEADLINE, self.lines.next_line()).await.expect("in time").expect("it writes");
        let line = line.expect("it goes on");
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"))
    }

    /// The next line for which this holds; those before it are kept.
    pub(crate) async fn until(&mut self, holds: impl Fn(&Value) -> bool) -> Value {
        loop {
            let next = self.next().await;
            if holds(&next) {
                return next;
            }
            self.seen.push(next);
        }
    }

    /// The answer to a request; what came before it is kept.
    pub(crate) async fn answer(&mut self, id: u64) -> Value {
        self.until(|line| line["id"] == id && line.get("method").is_none()).await
    }

    pub(crate) async fn call(&mut self, id: u64, method: &str, params: Value) -> Value {
        self.request(id, method, params).await;
        self.answer(id).await
    }

    /// Ends the input; the program's exit code.
    pub(crate) async fn end(mut self) -> Option<i32> {
        drop(self.input.take());
        timeout(DEADLINE, self.child.wait()).await.expect("in time").expect("it ends").code()
    }
}
