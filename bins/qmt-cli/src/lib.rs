//! What a person types: a client of a node's control API and gateway.
//!
//! It holds no state and no mesh logic. Each module is a family of commands: what they ask the node and how the answer is
//! shown. [`main`] is all that the binary calls; `docs/cli.md` lists commands, exit codes and the shape of errors.

mod acp;
mod args;
mod audit;
mod board;
mod ca;
mod chat;
mod console;
mod doctor;
mod failure;
mod import;
mod invites;
mod logs;
mod mcp;
mod models;
mod nodes;
mod ping;
mod pull;
mod routes;
mod screen;
mod service;
mod session;
mod setup;
mod table;
mod top;
mod units;

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser};
use mesh_control::{Client, PlanRequest, home_from_env};

use args::{Cli, Command, ConfigCommand, ModelsCommand};
use failure::Failure;
use screen::Screen;

/// The commands with their arguments, for what writes or checks documentation.
pub fn command() -> clap::Command {
    Cli::command()
}

/// The words in `error.code` that are this program's own, and what each means; other words come from the node or its gateway.
pub fn failure_words() -> &'static [(&'static str, &'static str)] {
    failure::WORDS
}

/// Parses the arguments, does what they ask, and says how that went.
pub fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let cli = match Cli::try_parse_from(&arguments) {
        Ok(cli) => cli,
        Err(error) => return not_understood(&error, &arguments),
    };
    let screen = Screen::new(cli.json);
    match run(&screen, cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => screen.fail(&failure),
    }
}

/// Shows help and version as asked for, and wrong usage as a failure.
fn not_understood(error: &clap::Error, arguments: &[OsString]) -> ExitCode {
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        let _ = error.print(); // nothing is left to do when nobody reads it
        return ExitCode::SUCCESS;
    }
    if !arguments.iter().any(|argument| argument == "--json") {
        let _ = error.print();
        return ExitCode::from(failure::USAGE);
    }
    let text = error.render().to_string();
    let message = text.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned();
    Screen::new(true).fail(&Failure::usage(message).with_mend("see `qmt-cli --help`"))
}

fn run(screen: &Screen, command: Command) -> Result<(), Failure> {
    let home = home_from_env().map_err(|error| Failure::usage(error.to_string()))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new("runtime", format!("the program cannot start its runtime: {error}")))?;
    let done = runtime.block_on(perform(&Client::for_home(&home), &home, screen, command));
    // A read of standard input that waits for its next line does not keep the program.
    runtime.shutdown_background();
    done
}

async fn perform(client: &Client, home: &Path, screen: &Screen, command: Command) -> Result<(), Failure> {
    match command {
        Command::Invite(args) => invites::invite(client, screen, args).await,
        Command::Invites => invites::list(client, screen).await,
        Command::Revoke { subject, scope, recovery_key } => {
            invites::revoke(client, screen, subject, scope, recovery_key).await
        }
        Command::Admin { node, scope, recovery_key } => {
            invites::appoint(client, screen, node, scope, recovery_key).await
        }
        Command::Join { token } => invites::join(client, screen, token).await,
        Command::Leave { mesh } => invites::leave(client, screen, mesh).await,
        Command::Status => nodes::status(client, screen).await,
        Command::Nodes => nodes::list(client, screen).await,
        Command::Ping { node, count } => ping::ping(client, screen, node, count).await,
        Command::Models { what: Some(ModelsCommand::Pull { model }) } => {
            pull::pull(client, screen, model).await
        }
        Command::Models { what: Some(ModelsCommand::Pulls) } => pull::list(client, screen).await,
        Command::Models { what: None | Some(ModelsCommand::List) } => models::list(client, screen).await,
        Command::Load { model, node, split, no_wait } => {
            models::load(client, screen, models::Load { model, node, split, wait: !no_wait }).await
        }
        Command::Plan { model, split, ctx_size } => {
            let request = PlanRequest { model, split: split.then_some(true), context_tokens: ctx_size };
            models::plan(client, screen, request).await
        }
        Command::Unload { model } => models::unload(client, screen, model).await,
        Command::Drop { model, node } => models::drop(client, screen, model, node).await,
        Command::Routes { what: Some(what), .. } => routes::agents(client, screen, what).await,
        Command::Routes { what: None, of } => routes::show(client, screen, of).await,
        Command::Acp { agent } => acp::serve(client, agent).await,
        Command::Mcp => mcp::serve(client).await,
        Command::Agents => session::agents(client, screen).await,
        Command::Session { what } => session::session(client, screen, what).await,
        Command::Board { what } => board::board(client, screen, what).await,
        Command::Delegate(args) => session::delegate(client, screen, args).await,
        Command::Chat(args) if args.agent.is_some() || args.session.is_some() => {
            session::chat(client, screen, args).await
        }
        Command::Chat(args) => chat::chat(client, screen, args).await,
        Command::Audit(args) => audit::audit(client, screen, args).await,
        Command::Config { what: ConfigCommand::Import { file, out } } => {
            import::import(screen, &file, out.as_deref())
        }
        Command::Console(args) => console::console(client, screen, args).await,
        Command::Logs(args) => logs::logs(client, screen, args).await,
        Command::Top => top::top(client, screen).await,
        Command::Service { what } => service::service(home, screen, what).await,
        Command::Completions { shell } => completions(screen, shell),
        Command::Man { folder } => man(screen, &folder),
        Command::Ca(args) => ca::ca(home, screen, args),
        Command::Doctor => doctor::doctor(client, home, screen).await,
        Command::Setup(args) => setup::setup(screen, args).await,
    }
}

fn completions(screen: &Screen, shell: clap_complete::Shell) -> Result<(), Failure> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "qmt-cli", &mut text);
    screen.print_bytes(&text)
}

fn man(screen: &Screen, folder: &Path) -> Result<(), Failure> {
    let written =
        std::fs::create_dir_all(folder).and_then(|()| clap_mangen::generate_to(Cli::command(), folder));
    written.map_err(|error| {
        Failure::new("output", format!("the manual pages cannot be written to {}: {error}", folder.display()))
    })?;
    screen.show(folder, |folder| format!("man -l {}/qmt-cli.1\n", folder.display()))
}
