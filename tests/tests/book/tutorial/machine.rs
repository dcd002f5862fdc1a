//! A machine of the tutorial: a home folder, a network, terminals.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use qmt_tests::lab::Host;
use rustix::process::{Pid, Signal, kill_process};

/// What the page says that the gateway is at.
const GATEWAY: &str = "http://127.0.0.1:9337";
/// Longest time of one command, as `timeout` takes it.
const LIMIT: &str = "100";

pub(crate) struct Machine {
    home: PathBuf,
    path: OsString,
    host: Option<Host>,
    running: Vec<Terminal>,
    /// Where the gateway is instead, when both machines are one.
    gateway: Option<String>,
}

/// A program that was left running in a terminal of its own.
struct Terminal {
    child: Child,
    said: Arc<Mutex<String>>,
}

impl Machine {
    pub(crate) fn new(home: &Path, programs: &Path, host: Option<Host>) -> Self {
        std::fs::create_dir_all(home).unwrap();
        let mut path = programs.as_os_str().to_owned();
        path.push(":");
        path.push(std::env::var_os("PATH").unwrap_or_default());
        Self { home: home.to_owned(), path, host, running: Vec::new(), gateway: None }
    }

    pub(crate) fn home(&self) -> &Path {
        &self.home
    }

    fn command(&self, program: &str) -> Command {
        let mut command =
            self.host.as_ref().map_or_else(|| Command::new(program), |host| host.command(program));
        command
            .current_dir(&self.home)
            .env("HOME", &self.home)
            .env("PATH", &self.path)
            .env("LANG", "C.UTF-8");
        for name in ["QMT_HOME", "QMT_INVITE", "QMT_API_KEY", "QMT_EPHEMERAL_KEY", "RUST_LOG", "HF_ENDPOINT"]
        {
            command.env_remove(name);
        }
        for name in ["http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"] {
            command.env_remove(name);
        }
        command
    }

    /// Types a command and waits for its end: whether it went well, and all that it printed.
    pub(crate) fn run(&self, line: &str) -> (bool, String) {
        let line = match &self.gateway {
            Some(gateway) => line.replace(GATEWAY, gateway),
            None => line.to_owned(),
        };
        let output = self
            .command("timeout")
            .args([LIMIT, "bash", "-c", &format!("exec 2>&1\n{line}")])
            .stdin(Stdio::null())
            .output()
            .expect("bash and timeout are installed");
        (output.status.success(), self.as_on_the_page(&String::from_utf8_lossy(&output.stdout)))
    }

    /// Types a command in a terminal of its own and leaves it running, once it has said what it should.
    pub(crate) fn leave_running<T>(
        &mut self,
        line: &str,
        patience: Duration,
        seen: impl Fn(&str) -> Option<T>,
    ) -> (String, Option<T>) {
        self.wait_for_prompt();
        // `script` is a terminal: a program says more to one than to a pipe.
        let mut command = self.command("script");
        command.args(["-qefc", &format!("exec {line}"), "/dev/null"]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        let mut child = command.spawn().expect("script (util-linux) is installed");
        let screen = child.stdout.take().expect("a pipe");
        let said = Arc::new(Mutex::new(String::new()));
        let writes = said.clone();
        std::thread::spawn(move || listen(screen, &writes));
        self.running.push(Terminal { child, said });
        let end = Instant::now() + patience;
        loop {
            let is_over =
                !matches!(self.running.last_mut().expect("it was put there").child.try_wait(), Ok(None));
            let shown = self.as_on_the_page(&self.log());
            let found = seen(&shown);
            if found.is_some() || is_over || Instant::now() > end {
                self.note_gateway();
                return (self.as_on_the_page(&self.log()), found.filter(|_| !is_over));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// A terminal has its prompt back once what ran in it has ended.
    fn wait_for_prompt(&mut self) {
        let end = Instant::now() + Duration::from_secs(30);
        while Instant::now() < end && !self.running.is_empty() {
            self.running.retain_mut(|terminal| matches!(terminal.child.try_wait(), Ok(None)));
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// All that the last program that was left running has said.
    pub(crate) fn log(&self) -> String {
        self.running.last().map(|terminal| terminal.said.lock().unwrap().clone()).unwrap_or_default()
    }

    /// When both machines are one, a port may be the other's.
    fn note_gateway(&mut self) {
        if self.host.is_some() {
            return;
        }
        let (_, status) = self.run("qmt-cli status --json");
        let status: BTreeMap<String, serde_json::Value> = serde_json::from_str(&status).unwrap_or_default();
        self.gateway = status.get("gateway_url").and_then(|url| url.as_str()).map(str::to_owned);
    }

    /// A home folder is called as the page calls it, and the folders of `PATH`, which are this machine's, by that name.
    fn as_on_the_page(&self, said: &str) -> String {
        let said = said.replace(self.home.to_str().expect("text"), "~");
        let searched = regex::Regex::new(r"(was not found in )/[^;]*?(, ~|;)").expect("a pattern");
        let said = searched.replace_all(&said, "${1}the folders of PATH${2}");
        match &self.gateway {
            Some(gateway) => said.replace(gateway, GATEWAY),
            None => said.into_owned(),
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // The node in order, so that nothing that it started is left; at once where it does not end.
        let lock = std::fs::read_to_string(self.home.join(".qmt/node.lock")).unwrap_or_default();
        let node = lock.trim().parse().ok().and_then(Pid::from_raw);
        for terminal in &mut self.running {
            if !matches!(terminal.child.try_wait(), Ok(None)) {
                continue;
            }
            let _ = node.map(|node| kill_process(node, Signal::TERM));
            let end = Instant::now() + Duration::from_secs(20);
            while matches!(terminal.child.try_wait(), Ok(None)) && Instant::now() < end {
                std::thread::sleep(Duration::from_millis(50));
            }
            let _ = terminal.child.kill();
            let _ = terminal.child.wait();
        }
    }
}

/// Reads until everybody has closed the terminal.
fn listen(mut screen: ChildStdout, said: &Mutex<String>) {
    let (mut bytes, mut part) = (Vec::new(), [0; 4096]);
    while let Ok(count) = screen.read(&mut part) {
        if count == 0 {
            break;
        }
        bytes.extend_from_slice(&part[..count]);
        *said.lock().unwrap() = without_colours(&String::from_utf8_lossy(&bytes));
    }
}

fn without_colours(text: &str) -> String {
    let mut parts = text.split("\u{1b}[");
    let mut plain = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let end = part.find(|c: char| c.is_ascii_alphabetic()).map_or(part.len(), |at| at + 1);
        plain.push_str(&part[end..]);
    }
    plain.replace('\r', "")
}
