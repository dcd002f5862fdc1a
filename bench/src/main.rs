//! Benchmarks: each prints goal beside figure and ends with `NAME: met X of Y`. Exit code 0 when all goals are met, 1 when
//! some are not, 2 when the benchmark could not run. `scripts/bench` builds and calls it.

mod channel;
#[cfg(target_os = "linux")]
mod console;
mod gateway;
mod inference;
mod load;
mod machine;
#[cfg(target_os = "linux")]
mod membership;
mod processes;
mod report;
mod sessions;
mod stats;
mod stub;
#[cfg(target_os = "linux")]
mod transport;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};

use channel::registry::Way;

#[derive(Parser)]
#[command(name = "qmt-bench", about = "Benchmarks of the QMT mesh")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Delegations over the agent channel beside a bare echo over TLS; handshakes; how soon a revocation closes connections, here and
    /// at other nodes; the registry's file with fifty writers.
    AgentChannel {
        /// Fewer rounds: enough to see that it runs, too few to rely on.
        #[arg(long)]
        quick: bool,
        /// Measure this alone; may be repeated. The other figures are said to be not measured.
        #[arg(long = "part")]
        parts: Vec<channel::Part>,
        /// Folder with qmt-node and qmt-cli.
        #[arg(long)]
        bin_dir: Option<PathBuf>,
        /// Where to write the report.
        #[arg(long)]
        report: Option<PathBuf>,
    },
    /// The OpenAI gateway, local and over the mesh, against the backend directly and beside nginx.
    Gateway {
        /// Fewer rounds: enough to see that it runs, too few to rely on.
        #[arg(long)]
        quick: bool,
        /// Folder with qmt-node and qmt-cli.
        #[arg(long)]
        bin_dir: PathBuf,
        /// The nginx program.
        #[arg(long, default_value = "nginx")]
        nginx: PathBuf,
        /// Where to write the report.
        #[arg(long)]
        report: Option<PathBuf>,
    },
    /// Who is there, with what: real nodes that are killed, revoked, left alone; simulated ones by the thousand.
    #[cfg(target_os = "linux")]
    Membership {
        /// Fewer rounds: enough to see that it runs, too few to rely on.
        #[arg(long)]
        quick: bool,
        /// Measure this alone; may be repeated. The other figures are said to be not measured.
        #[arg(long = "part")]
        parts: Vec<membership::Part>,
        /// Ten thousand simulated node-hours at 20 % loss, too.
        #[arg(long)]
        long: bool,
        /// Folder with qmt-node.
        #[arg(long)]
        bin_dir: PathBuf,
        /// The program that runs foca in the simulated network.
        #[arg(long)]
        foca: Option<PathBuf>,
        /// Where to write the report.
        #[arg(long)]
        report: Option<PathBuf>,
    },
    /// Models split over nodes: tokens a second beside plain llama.cpp, bytes and time of loading.
    Inference {
        /// Fewer rounds: enough to see that it runs, too few to rely on.
        #[arg(long)]
        quick: bool,
        /// Measure this alone; may be repeated. The other figures are said to be not measured.
        #[arg(long = "part")]
        parts: Vec<inference::Part>,
        /// Folder with qmt-node and qmt-cli.
        #[arg(long)]
        bin_dir: PathBuf,
        /// Folder with llama-server and rpc-server.
        #[arg(long)]
        llama: PathBuf,
        /// The model's file.
        #[arg(long)]
        model: PathBuf,
        /// Where to write the report.
        #[arg(long)]
        report: Option<PathBuf>,
    },
    /// Sessions on disk: durable events a second beside bare SQLite, forks, very long sessions, a thousand watchers; and at
    /// other nodes, which are killed and cut off.
    Sessions {
        /// Fewer rounds: enough to see that it runs, too few to rely on.
        #[arg(long)]
        quick: bool,
        /// Measure this alone; may be repeated. The other figures are said to be not measured.
        #[arg(long = "part")]
        parts: Vec<sessions::Part>,
        /// Folder with qmt-node.
        #[arg(long)]
        bin_dir: Option<PathBuf>,
        /// Of the part `chaos`: how often nodes are harmed [default: 1000].
        #[arg(long)]
        runs: Option<u64>,
        /// Where to write the report.
        #[arg(long)]
        report: Option<PathBuf>,
    },
    /// Links: throughput and round trips beside the bare libraries; real nodes that find each other, behind NATs, on
    /// networks that change.
    #[cfg(target_os = "linux")]
    Transport {
        /// Fewer rounds: enough to see that it runs, too few to rely on.
        #[arg(long)]
        quick: bool,
        /// Measure this alone; may be repeated. The other figures are said to be not measured.
        #[arg(long = "part")]
        parts: Vec<transport::Part>,
        /// Folder with qmt-node.
        #[arg(long)]
        bin_dir: PathBuf,
        /// Where to write the report.
        #[arg(long)]
        report: Option<PathBuf>,
    },
    /// The console: what the page weighs and costs, in a real browser.
    #[cfg(target_os = "linux")]
    Console {
        /// Fewer rounds: enough to see that it runs, too few to rely on.
        #[arg(long)]
        quick: bool,
        /// Folder with qmt-node and qmt-cli.
        #[arg(long)]
        bin_dir: PathBuf,
        /// Where to write the report.
        #[arg(long)]
        report: Option<PathBuf>,
    },
    /// One of the processes that write a registry at once, for `agent-channel`.
    #[command(hide = true)]
    RegistryWriter {
        /// With mesh.json.
        folder: PathBuf,
        /// Which one it is.
        number: usize,
        /// How long it writes once it is told to.
        time_ms: u64,
        /// Writes the same bytes without the registry.
        #[arg(long)]
        bare: bool,
    },
    /// The backend that the benchmarks measure against: answers at once, or streams chunks that carry their send time.
    Stub,
}

fn main() -> ExitCode {
    let done = match Arguments::parse().command {
        Command::AgentChannel { quick, parts, bin_dir, report } => {
            channel::run(&channel::Options { quick, parts, bin_dir, report })
        }
        Command::RegistryWriter { folder, number, time_ms, bare } => {
            let way = if bare { Way::Bare } else { Way::Registry };
            channel::registry::write(&folder, number, Duration::from_millis(time_ms), way).map(|()| true)
        }
        Command::Gateway { quick, bin_dir, nginx, report } => {
            gateway::run(&gateway::Options { quick, bin_dir, nginx, report })
        }
        Command::Inference { quick, parts, bin_dir, llama, model, report } => {
            inference::run(&inference::Options { quick, parts, bin_dir, llama, model, report })
        }
        #[cfg(target_os = "linux")]
        Command::Membership { quick, parts, long, bin_dir, foca, report } => {
            membership::run(&membership::Options { quick, parts, long, bin_dir, foca, report })
        }
        #[cfg(target_os = "linux")]
        Command::Transport { quick, parts, bin_dir, report } => {
            transport::run(&transport::Options { quick, parts, bin_dir, report })
        }
        Command::Sessions { quick, parts, bin_dir, runs, report } => {
            sessions::run(&sessions::Options { quick, parts, bin_dir, runs, report })
        }
        #[cfg(target_os = "linux")]
        Command::Console { quick, bin_dir, report } => {
            console::run(&console::Options { quick, bin_dir, report })
        }
        Command::Stub => stub::run().map(|()| true),
    };
    if let Err(error) = &done {
        eprintln!("error: {error:#}");
    }
    ExitCode::from(report::exit_code(&done))
}
