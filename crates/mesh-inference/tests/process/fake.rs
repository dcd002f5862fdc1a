//! A stand-in for llama-server. Its behaviour is the model's file name; what it counts is in files beside the model.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use rustix::process::{Signal, getpid, kill_process};

pub(crate) fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    let value = |name: &str| {
        arguments.iter().position(|item| item == name).and_then(|at| arguments.get(at + 1)).cloned()
    };
    let model = PathBuf::from(value("-m").unwrap());
    let port: u16 = value("--port").unwrap().parse().unwrap();
    let starts = count(&model.with_extension("starts"));
    let behaviour = model.file_stem().unwrap().to_str().unwrap().to_owned();
    eprintln!("fake start {starts} as {behaviour}");
    match behaviour.as_str() {
        "broken" => {
            eprintln!("error: the tensor is upside down");
            return ExitCode::from(3);
        }
        "illegal" => kill_process(getpid(), Signal::ILL).unwrap(),
        "hangs" => sleep(),
        "stubborn" => ignore_sigterm(&arguments),
        _ => (),
    }
    let Ok(listener) = TcpListener::bind(("127.0.0.1", port)) else {
        eprintln!("couldn't bind to port {port}");
        return ExitCode::FAILURE;
    };
    let mut asked = 0;
    for stream in listener.incoming() {
        let Ok(mut stream) = stream else { continue };
        let mut request = [0; 2048];
        let length = stream.read(&mut request).unwrap_or(0);
        let request = String::from_utf8_lossy(&request[..length]).into_owned();
        let authorized =
            std::env::var("LLAMA_API_KEY").is_ok_and(|key| request.contains(&format!("Bearer {key}")));
        if behaviour == "stuck" && starts == 1 && request.starts_with("GET /slots") {
            continue;
        }
        asked += u32::from(request.starts_with("GET /health"));
        let status = match behaviour.as_str() {
            "slow" if asked <= 8 => "503 Service Unavailable",
            _ if request.starts_with("GET /health") || authorized => "200 OK",
            _ => "401 Unauthorized",
        };
        let _ = write!(stream, "HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        if behaviour == "crashes-once" && starts == 1 && authorized {
            return ExitCode::from(7);
        }
    }
    ExitCode::SUCCESS
}

/// A stand-in for rpc-server, which takes connections and says nothing.
pub(crate) fn rpc_server() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    let port = arguments.iter().position(|item| item == "-p").and_then(|at| arguments.get(at + 1)).unwrap();
    let listener = TcpListener::bind(("127.0.0.1", port.parse().unwrap())).unwrap();
    let taken: Vec<_> = listener.incoming().collect();
    drop(taken);
    ExitCode::SUCCESS
}

fn sleep() -> ! {
    loop {
        std::thread::sleep(Duration::from_secs(60));
    }
}

/// Without unsafe code no signal can be ignored here, but a shell can do it for us, and passes it on.
fn ignore_sigterm(arguments: &[String]) {
    if std::env::var_os("FAKE_IGNORES_SIGTERM").is_some() {
        return;
    }
    use std::os::unix::process::CommandExt;
    let mut command = std::process::Command::new("/bin/sh");
    command.args(["-c", "trap '' TERM; exec \"$@\"", "sh"]).args(arguments).env("FAKE_IGNORES_SIGTERM", "1");
    panic!("{}", command.exec());
}

fn count(path: &std::path::Path) -> u32 {
    let before = std::fs::read_to_string(path).ok().and_then(|text| text.parse().ok()).unwrap_or(0);
    std::fs::write(path, (before + 1).to_string()).unwrap();
    before + 1
}
