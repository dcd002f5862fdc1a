//! Agents of another node beside own ones: turns, and going on in a very long session. Real nodes on one machine, so that what is
//! added is the mesh's and not the network's.

use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use mesh_control::{Client, CreateSession, Followed, PingRequest, PromptPart, PromptSession, SessionFollow};
use mesh_sessions::event::{Body, Right, Share, ShareWith};
use mesh_sessions::store::{Config, Store};
use qmt_tests::fleet::{Fleet, PATIENCE, Setup};
use qmt_tests::sessions::Provider;
use uuid::Uuid;

use super::{append, long};
use crate::report::{Goal, Lacking, Report};
use crate::stats::{estimate, median};

const HOST: usize = 0;
const CLIENT: usize = 1;
/// An answer: so many tokens, as far apart as those of a fast model.
const TOKENS: usize = 40;
const GAP_MS: u64 = 5;
const FIRST: &str = "a turn at another node: added time to the first piece of its answer";
const EACH: &str = "a turn at another node: added time for each further piece";
/// In a session of so many events.
const EVENTS: (usize, usize) = (1_000_000, 100_000);
const RESUME: Goal = Goal::AtMost(20.0);

fn resume_row(events: usize) -> String {
    format!(
        "open and resume a session of {events} events at another node that has just started, without one round trip"
    )
}

pub(super) fn lacking() -> Lacking {
    vec![
        (FIRST.to_owned(), "ms", Goal::None),
        (EACH.to_owned(), "ms", Goal::None),
        (resume_row(EVENTS.0), "ms", RESUME),
    ]
}

pub(super) async fn measure(report: &mut Report, node: &Path, quick: bool) -> Result<()> {
    let (rounds, restarts, events) = if quick { (5, 2, EVENTS.1) } else { (50, 15, EVENTS.0) };
    let workspace = tempfile::tempdir()?;
    let provider = Provider::start(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?)?;
    let configs = [provider.agent("worker", workspace.path()), String::new()];
    let configure = |number: usize| configs[number].clone();
    let setup = Setup { program: node, nodes: 2, hosts: Vec::new(), configure: &configure };
    let mut fleet = Fleet::start(setup).await?;
    turns(report, &fleet, rounds).await?;
    resumes(report, &mut fleet, &configs[HOST], restarts, events).await
}

async fn turns(report: &mut Report, fleet: &Fleet, rounds: usize) -> Result<()> {
    let far = format!("worker@{}", fleet.node(HOST).id());
    let (mut first, mut each) = (Vec::new(), Vec::new());
    for round in 0..rounds + 1 {
        let here = turn(fleet.node(HOST).client(), "worker", round).await?;
        let there = turn(fleet.node(CLIENT).client(), &far, round).await?;
        // The first one opens links and connections.
        if round > 0 {
            first.push(there.first - here.first);
            each.push(there.each - here.each);
        }
    }
    report.row(FIRST, "ms", Goal::None, estimate(&first));
    report.row(EACH, "ms", Goal::None, estimate(&each));
    report.note(format!(
        "turns: {TOKENS} pieces, {GAP_MS} ms apart, from a provider on this machine; prompted and read over the control socket of the \
         agent's node and of another one, by turns."
    ));
    Ok(())
}

/// Milliseconds.
struct Took {
    /// From the prompt to the first piece.
    first: f64,
    /// From a piece to the next.
    each: f64,
}

async fn turn(client: &Client, agent: &str, round: usize) -> Result<Took> {
    let new =
        CreateSession { id: Uuid::now_v7().to_string(), agent: agent.to_owned(), ..CreateSession::default() };
    let begin = Instant::now();
    let view = loop {
        match client.create_session(&new).await {
            Ok(view) => break view,
            Err(error) if begin.elapsed() > PATIENCE => return Err(error.into()),
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    };
    let session = format!("{}@{}", view.id, view.node);
    let mut reader = client.follow_session(&session, 0);
    next(&mut reader).await?;
    let parts = vec![PromptPart::Text { text: format!("say b{round} {TOKENS} {GAP_MS}") }];
    let begin = Instant::now();
    client.prompt(&PromptSession { session, prompt: "p".to_owned(), parts }).await?;
    let mut pieces: Vec<Instant> = Vec::new();
    loop {
        match next(&mut reader).await?.as_str() {
            "text_added" => pieces.push(Instant::now()),
            "turn_ended" => break,
            _ => {}
        }
    }
    let (Some(first), Some(last)) = (pieces.first(), pieces.last()) else { bail!("no answer") };
    let milliseconds = |time: Duration| time.as_secs_f64() * 1e3;
    let each = milliseconds(*last - *first) / (pieces.len().max(2) - 1) as f64;
    Ok(Took { first: milliseconds(*first - begin), each })
}

async fn next(reader: &mut SessionFollow) -> Result<String> {
    loop {
        match reader.next().await? {
            Followed::Event(event) => return Ok(event.kind().to_owned()),
            Followed::Lost(_) => {}
            Followed::End(end) => bail!("{end:?}"),
        }
    }
}

/// A session that was written while its node was away, and grew long in its life: its node keeps how it stands now and then.
async fn resumes(
    report: &mut Report,
    fleet: &mut Fleet,
    config: &str,
    restarts: usize,
    events: usize,
) -> Result<()> {
    fleet.kill(HOST);
    let store = Store::open(&fleet.node(HOST).home().join("sessions.db"), Config::default()).await?;
    let session = long(&store, 0, events - 1).await?;
    let with = ShareWith::Node(fleet.node(CLIENT).id().parse().ok().context("an id")?);
    let shares = vec![Share { with, right: Right::Own }];
    store.append(append(session, vec![Body::Shared { shares }])).await?;
    store.close().await;
    let (address, client) =
        (format!("{session}@{}", fleet.node(HOST).id()), fleet.node(CLIENT).client().clone());
    let (mut took, mut last) = (Vec::new(), events as u64);
    for restart in 0..restarts + 1 {
        fleet.restart(HOST, config).await?;
        let ping = PingRequest { node: fleet.node(HOST).id().to_owned(), count: Some(9) };
        let begin = Instant::now();
        let pongs = loop {
            match client.ping(&ping).await {
                Ok(pongs) => break pongs,
                Err(error) if begin.elapsed() > PATIENCE => return Err(error.into()),
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        };
        let round_trips: Vec<f64> = pongs.iter().map(|pong| pong.rtt_ms).collect();
        let begin = Instant::now();
        let written = client.resume(&address).await?;
        let mut reader = client.follow_session(&address, written.number - 10);
        while reader.at() < written.number {
            next(&mut reader).await?;
        }
        let milliseconds = begin.elapsed().as_secs_f64() * 1e3;
        anyhow::ensure!(written.number >= last, "event {} after {last}", written.number);
        last = written.number;
        // The first one leaves behind how it stands, as a session that grew by itself has it.
        if restart > 0 {
            took.push(milliseconds - median(&round_trips));
        }
    }
    report.row(resume_row(events), "ms", RESUME, estimate(&took));
    Ok(())
}
