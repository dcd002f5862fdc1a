//! Revocation of a member in the middle of its streams: until the last byte that it sends or gets.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use mesh_control::RevokeRequest;
use qmt_tests::fleet::{Fleet, Setup};
use tokio::task::JoinSet;

use super::NODES;
use crate::load::Client;
use crate::processes;
use crate::report::{Goal, Lacking, Report};
use crate::stats::{estimate, estimate_at};
use crate::stub::now_nanos;

/// Streams out of the node that is revoked, and as many into it, each to another node.
const STREAMS: usize = 4;
/// Between two pieces of a stream, microseconds: what the figure can be wrong by.
const GAP_MICROS: u32 = 2_000;
/// The streams run for so long before they are cut.
const RUN: Duration = Duration::from_millis(300);
/// By then every stream must have ended.
const CUT: Duration = Duration::from_secs(30);
/// The founder, who revokes.
const REVOKER: usize = 0;
const GOAL: Goal = Goal::AtMost(500.0);

/// Milliseconds from the call to the last byte, revocation by revocation.
#[derive(Debug, Default)]
pub(super) struct Cuts {
    /// Of streams out of the revoked node, read by callers of others.
    out: Vec<f64>,
    /// Of streams into it, read by its own callers.
    into: Vec<f64>,
    /// Of both.
    last: Vec<f64>,
}

impl Cuts {
    pub(super) async fn measure(program: &Path, revocations: usize) -> Result<Self> {
        let (_stub, backend) = processes::stub()?;
        let configure = move |number: usize| provider(&backend, &model(number, 0));
        let setup = Setup { configure: &configure, ..Setup::on_loopback(program, NODES) };
        let mut fleet = Fleet::start(setup).await?;
        let mut cuts = Self::default();
        let mut models: Vec<String> = (0..NODES).map(|number| model(number, 0)).collect();
        for revocation in 0..revocations {
            let subject = 1 + revocation % (NODES - 1);
            let cut = cuts.revoke(&fleet, subject, &models).await;
            cut.with_context(|| format!("revocation {revocation}, of node {subject}"))?;
            models[subject] = model(subject, revocation + 1);
            let configuration = configure(subject).replace(&model(subject, 0), &models[subject]);
            fleet.replace(subject, &configuration).await?;
            fleet.all_see_the_living().await?;
        }
        Ok(cuts)
    }

    async fn revoke(&mut self, fleet: &Fleet, subject: usize, models: &[String]) -> Result<()> {
        let others = (1..NODES).map(|step| (subject + step * 3) % NODES);
        let others: Vec<usize> = others.filter(|other| *other != subject).take(STREAMS).collect();
        let (mut out, mut into) = (JoinSet::new(), JoinSet::new());
        for other in others {
            out.spawn(last_byte(stream(fleet, other, &models[subject]).await?));
            into.spawn(last_byte(stream(fleet, subject, &models[other]).await?));
        }
        tokio::time::sleep(RUN).await;
        ensure!(out.try_join_next().is_none(), "a stream out of the node ended before it was revoked");
        ensure!(into.try_join_next().is_none(), "a stream into the node ended before it was revoked");
        let request = RevokeRequest { subject: fleet.node(subject).id().to_owned(), scope: None };
        let begun = now_nanos();
        fleet.node(REVOKER).client().revoke(&request).await?;
        let out =
            tokio::time::timeout(CUT, latest(out, begun)).await.context("bytes still come out of it")??;
        let into =
            tokio::time::timeout(CUT, latest(into, begun)).await.context("bytes still go into it")??;
        self.out.push(out);
        self.into.push(into);
        self.last.push(out.max(into));
        Ok(())
    }

    pub(super) fn tell(&self, report: &mut Report) {
        let [out, into, half, most] = names();
        report.row(out, "ms", Goal::None, estimate_at(&self.out, 0.99));
        report.row(into, "ms", Goal::None, estimate_at(&self.into, 0.99));
        report.row(half, "ms", Goal::None, estimate(&self.last));
        report.row(most, "ms", GOAL, estimate_at(&self.last, 0.99));
        report.note(format!(
            "revocation: {} in a mesh of {NODES} processes on loopback, each of another node, which is replaced by a new one after it. \
             {STREAMS} answers stream from it to callers of other nodes and as many from others to its own callers, a piece every {} ms; \
             from the start of the founder's call to the last byte at any of the callers.",
            self.last.len(),
            f64::from(GAP_MICROS) / 1e3,
        ));
    }

    pub(super) fn lacking() -> Lacking {
        let [.., most] = names();
        vec![(most, "ms", GOAL)]
    }
}

fn names() -> [String; 4] {
    [
        "revocation to the last byte out of the node, p99",
        "revocation to the last byte into the node, p99",
        "revocation to the last byte cut, p50",
        "revocation to the last byte cut, p99",
    ]
    .map(|what| format!("{NODES} processes: {what}"))
}

/// The model that a node has in one of its lives and nobody else.
fn model(number: usize, life: usize) -> String {
    format!("node{number}-life{life}")
}

fn provider(backend: &str, model: &str) -> String {
    format!(
        "[[providers]]\nname = \"stub\"\nkind = \"openai\"\nbase_url = \"http://{backend}/v1\"\nmodels = [\"{model}\"]\n"
    )
}

/// An answer that has begun and does not end by itself, of a model at one node to a caller of another.
async fn stream(fleet: &Fleet, node: usize, model: &str) -> Result<crate::load::Held> {
    let node = fleet.node(node);
    let offered = async {
        loop {
            let models = node.client().models().await?;
            if models.iter().any(|one| one.name == model && one.state == mesh_control::ModelState::Ready) {
                return anyhow::Ok(());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let offered = tokio::time::timeout(CUT, offered).await;
    offered.with_context(|| format!("{} does not know the model {model}", node.name()))??;
    let gateway = node.client().status().await?.gateway_url.context("a gateway")?;
    let gateway = gateway.trim_start_matches("http://").trim_end_matches('/');
    Client::connect(gateway).await?.hold(&endless(model)).await
}

fn endless(model: &str) -> Bytes {
    Bytes::from(format!(
        r#"{{"model":"{model}","stream":true,"n_chunks":{},"gap_micros":{GAP_MICROS},"messages":[{{"role":"user","content":"Hello"}}]}}"#,
        u32::MAX
    ))
}

/// When the last byte of a stream came, nanoseconds since 1970, once it has ended in whatever way.
async fn last_byte(mut held: crate::load::Held) -> u64 {
    let mut last = now_nanos();
    while let Some(piece) = held.piece().await {
        if piece.is_empty() {
            continue;
        }
        last = now_nanos();
    }
    last
}

async fn latest(mut streams: JoinSet<u64>, begun: u64) -> Result<f64> {
    let mut latest = begun;
    while let Some(last) = streams.join_next().await {
        latest = latest.max(last?);
    }
    Ok((latest - begun) as f64 / 1e6)
}
