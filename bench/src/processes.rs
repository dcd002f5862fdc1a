//! The processes of a measurement: stub, nginx, nodes. Each is ended by its id when it is dropped, with its own children.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

const START_DEADLINE: Duration = Duration::from_secs(20);

/// How long a process may take to end when asked to.
const STOP_DEADLINE: Duration = Duration::from_secs(5);

/// A process, ended and reaped on drop: asked first, so that it ends its own children (nginx its workers), then killed.
pub(crate) struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = kill_process(Pid::from_child(&self.0), Signal::TERM);
        let begin = Instant::now();
        while begin.elapsed() < STOP_DEADLINE {
            match self.0.try_wait() {
                Ok(None) => std::thread::sleep(Duration::from_millis(1)),
                Ok(Some(_)) | Err(_) => return,
            }
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Process {
    /// Fails once it has ended, which nobody needs to wait for then.
    fn ensure_runs(&mut self, what: &str) -> Result<()> {
        match self.0.try_wait()? {
            None => Ok(()),
            Some(status) => bail!("{what} has ended ({status})"),
        }
    }

    /// Resident memory in MB (10^6 bytes).
    pub(crate) fn resident_mb(&self) -> Result<f64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.0.id())).context("no /proc here")?;
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).context("no VmRSS")?;
        let kib: f64 = line.split_whitespace().nth(1).context("no figure")?.parse()?;
        Ok(kib * 1024.0 / 1e6)
    }
}

/// The stub backend and its authority (`host:port`).
pub(crate) fn stub() -> Result<(Process, String)> {
    let mut child = Command::new(std::env::current_exe()?).arg("stub").stdout(Stdio::piped()).spawn()?;
    let stdout = child.stdout.take().context("no stdout")?;
    let process = Process(child);
    let mut line = String::new();
    BufReader::new(stdout).read_line(&mut line)?;
    let authority =
        line.trim().strip_prefix("http://").context("the stub did not say where it listens")?.to_owned();
    Ok((process, authority))
}

/// nginx as a reverse proxy before `backend`, with keep-alive on both sides and without buffering.
pub(crate) fn nginx(program: &Path, folder: &Path, backend: &str) -> Result<(Process, String)> {
    let port = free_port()?;
    fs::create_dir_all(folder)?;
    let conf = folder.join("nginx.conf");
    fs::write(
        &conf,
        format!(
            "daemon off; worker_processes auto; pid {folder}/pid; error_log {folder}/error.log;
events {{ worker_connections 4096; }}
http {{
  access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fcgi;
  uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi; keepalive_requests 10000000;
  upstream backend {{ server {backend}; keepalive 256; keepalive_requests 10000000; }}
  server {{
    listen 127.0.0.1:{port};
    location / {{
      proxy_pass http://backend; proxy_http_version 1.1; proxy_set_header Connection \"\"; proxy_buffering off;
      proxy_read_timeout 3600s;
    }}
  }}
}}
",
            folder = folder.display()
        ),
    )?;
    let child = Command::new(program)
        .arg("-e")
        .arg(folder.join("error.log"))
        .arg("-c")
        .arg(&conf)
        .stdout(Stdio::null())
        .spawn()
        .with_context(|| format!("cannot start {} (Debian package nginx-light)", program.display()))?;
    let process = Process(child);
    let authority = format!("127.0.0.1:{port}");
    wait_for("nginx", || Ok(std::net::TcpStream::connect(&authority).is_ok()))?;
    Ok((process, authority))
}

/// A running node with a home of its own.
pub(crate) struct Node {
    pub(crate) process: Process,
    pub(crate) gateway: String,
    home: PathBuf,
    cli: PathBuf,
}

impl Node {
    /// Starts a node with `config` as its configuration file.
    pub(crate) fn start(bin_dir: &Path, home: &Path, config: &str) -> Result<Self> {
        let process = spawn_node(bin_dir, home, config, &[])?;
        let cli = bin_dir.join("qmt-cli");
        let mut node = Self { process, gateway: String::new(), home: home.to_owned(), cli };
        let log = home.join("log");
        wait_for("qmt-node", || Ok(node.cli(&["status"]).is_ok()))
            .with_context(|| format!("its log: {}", log.display()))?;
        let status = node.cli(&["status"])?;
        let url = status["gateway_url"].as_str().context("the node has no gateway")?;
        node.gateway = url.trim_start_matches("http://").trim_end_matches('/').to_owned();
        Ok(node)
    }

    /// What `qmt-cli ARGS --json` prints.
    pub(crate) fn cli(&self, args: &[&str]) -> Result<Value> {
        let output = Command::new(&self.cli).args(args).arg("--json").env("QMT_HOME", &self.home).output()?;
        ensure!(
            output.status.success(),
            "qmt-cli {}: {}",
            args.join(" "),
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    /// Waits until the node sees `model` as ready.
    pub(crate) fn wait_for_model(&self, model: &str) -> Result<()> {
        wait_for("the model", || {
            let models = self.cli(&["models"])?;
            Ok(models
                .as_array()
                .is_some_and(|all| all.iter().any(|one| one["name"] == model && one["state"] == "ready")))
        })
    }
}

/// Milliseconds from the start of a node with an empty home to its first answer to `/v1/models`.
pub(crate) fn cold_start(bin_dir: &Path, home: &Path) -> Result<f64> {
    let port = free_port()?;
    let begin = Instant::now();
    let _process = spawn_node(bin_dir, home, "", &["--port", &port.to_string()])?;
    while begin.elapsed() < START_DEADLINE {
        if answers_models(port) {
            return Ok(begin.elapsed().as_secs_f64() * 1e3);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    bail!("the node did not answer within {START_DEADLINE:?}; its log: {}", home.join("log").display())
}

fn answers_models(port: u16) -> bool {
    answers(port, "/v1/models")
}

fn answers(port: u16, path: &str) -> bool {
    use std::io::{Read, Write};
    let ask = || -> std::io::Result<bool> {
        let mut socket = std::net::TcpStream::connect(("127.0.0.1", port))?;
        socket.set_read_timeout(Some(Duration::from_secs(2)))?;
        write!(socket, "GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n")?;
        let mut answer = [0; 12];
        socket.read_exact(&mut answer)?;
        Ok(&answer == b"HTTP/1.1 200")
    };
    ask().unwrap_or(false)
}

fn spawn_node(bin_dir: &Path, home: &Path, config: &str, flags: &[&str]) -> Result<Process> {
    fs::create_dir_all(home)?;
    let file = home.join("config.toml");
    fs::write(&file, config)?;
    let log = File::create(home.join("log"))?;
    let program = bin_dir.join("qmt-node");
    let child = Command::new(&program)
        .arg("--config")
        .arg(&file)
        .args(flags)
        .env("QMT_HOME", home)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .with_context(|| format!("cannot start {}", program.display()))?;
    Ok(Process(child))
}

fn wait_for(what: &str, ready: impl FnMut() -> Result<bool>) -> Result<()> {
    wait_for_long(what, START_DEADLINE, ready)
}

/// The same for what takes longer than the start of a process.
pub(crate) fn wait_for_long(
    what: &str,
    deadline: Duration,
    mut ready: impl FnMut() -> Result<bool>,
) -> Result<()> {
    let begin = Instant::now();
    while begin.elapsed() < deadline {
        if ready()? {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    bail!("{what} was not ready within {deadline:?}")
}

/// A plain ggml-rpc-server, one thread.
pub(crate) struct RpcServer {
    _process: Process,
    authority: String,
}

impl RpcServer {
    /// On loopback.
    pub(crate) fn start(llama: &Path) -> Result<Self> {
        Self::start_at(llama, Ipv4Addr::LOCALHOST)
    }

    /// At an address of this machine.
    pub(crate) fn start_at(llama: &Path, address: Ipv4Addr) -> Result<Self> {
        let port = free_port()?;
        let address = address.to_string();
        let program = ["ggml-rpc-server", "rpc-server"].map(|name| llama.join(name));
        let program = program.iter().find(|path| path.is_file()).context("llama.cpp brings no rpc-server")?;
        let child = Command::new(program)
            .args(["-H", &address, "-t", "1", "-p", &port.to_string()])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        let mut process = Process(child);
        // A llama-server that does not find it ends at once. A connection would be taken for its first caller.
        wait_for("rpc-server", || {
            process.ensure_runs("rpc-server")?;
            Ok(TcpListener::bind((address.as_str(), port)).is_err())
        })?;
        Ok(Self { _process: process, authority: format!("{address}:{port}") })
    }
}

/// A plain llama-server over rpc-servers, one thread.
pub(crate) struct LlamaServer {
    _process: Process,
    pub(crate) authority: String,
}

impl LlamaServer {
    pub(crate) fn start(
        llama: &Path,
        model: &Path,
        servers: &[RpcServer],
        tensor_split: &str,
        deadline: Duration,
    ) -> Result<Self> {
        let port = free_port()?;
        let rpc: Vec<&str> = servers.iter().map(|server| server.authority.as_str()).collect();
        let child = Command::new(llama.join("llama-server"))
            .arg("-m")
            .arg(model)
            .args(["--host", "127.0.0.1", "--port", &port.to_string(), "-c", "512", "-np", "1", "-t", "1"])
            .args([
                "-ngl",
                "99",
                "--rpc",
                &rpc.join(","),
                "--tensor-split",
                tensor_split,
                "-fit",
                "off",
                "--no-webui",
            ])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot start llama-server")?;
        let mut process = Process(child);
        wait_for_long("llama-server", deadline, || {
            process.ensure_runs("llama-server")?;
            Ok(answers(port, "/health"))
        })?;
        Ok(Self { _process: process, authority: format!("127.0.0.1:{port}") })
    }
}

/// POSTs JSON and reads the JSON of the answer.
pub(crate) fn ask_json(authority: &str, path: &str, body: &Value) -> Result<Value> {
    use std::io::{Read, Write};
    let body = body.to_string();
    let mut socket = std::net::TcpStream::connect(authority)?;
    socket.set_read_timeout(Some(Duration::from_secs(300)))?;
    write!(
        socket,
        "POST {path} HTTP/1.1\r\nHost: {authority}\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )?;
    let mut answer = String::new();
    socket.read_to_string(&mut answer)?;
    ensure!(
        answer.starts_with("HTTP/1.1 200"),
        "{authority}{path} answered {}",
        answer.lines().next().unwrap_or_default()
    );
    let (from, to) = (answer.find('{').context("no JSON")?, answer.rfind('}').context("no JSON")?);
    Ok(serde_json::from_str(&answer[from..=to])?)
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_process_ends_with_its_children() -> Result<()> {
        let script = "sleep 1000 & trap \"kill $!; exit\" TERM; echo $!; wait";
        let mut child = Command::new("sh").arg("-c").arg(script).stdout(Stdio::piped()).spawn()?;
        let stdout = child.stdout.take().context("no stdout")?;
        let process = Process(child);
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        let grandchild = Pid::from_raw(line.trim().parse()?).context("no id")?;
        assert!(!has_ended(grandchild));
        drop(process);
        wait_for("the grandchild's end", || Ok(has_ended(grandchild)))
    }

    #[test]
    fn a_process_that_does_not_listen_is_killed() -> Result<()> {
        let child = Command::new("sh")
            .args(["-c", "trap '' TERM; echo; while :; do sleep 1; done"])
            .stdout(Stdio::piped())
            .spawn();
        let mut child = child?;
        let id = Pid::from_child(&child);
        let stdout = child.stdout.take().context("no stdout")?;
        let process = Process(child);
        BufReader::new(stdout).read_line(&mut String::new())?;
        drop(process);
        assert!(has_ended(id));
        Ok(())
    }

    /// Gone, or dead and not yet reaped by whoever took it over.
    fn has_ended(id: Pid) -> bool {
        fs::read_to_string(format!("/proc/{id}/stat"))
            .map_or(true, |stat| stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('Z')))
    }
}
