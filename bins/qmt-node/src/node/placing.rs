//! Where a model could run: this node and the members of one scope, as placement sees them.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use mesh_control::{ApiError, ErrorCode};
use mesh_gossip::{Member, State};
use mesh_identity::{NodeId, Role};
use mesh_inference::catalogue::{Catalogue, Model, ResolveError};
use mesh_inference::gguf::Metadata;
use mesh_inference::plan::{
    Context, Gpu, Link, Machine, Needs, Plan, Speed, Wishes, check_vocabulary, parse_shares, plan,
};

use super::facts::offers_of;
use super::machine::{GpuFacts, MACHINE_KEY, MachineFacts, SpeedFacts, decode_disk};
use super::scopes::Scope;
use super::views::role_here;
use super::{Node, chain};
use crate::config::Draft;

/// Round trip counted for a member that was never reached from here: another room's wireless network.
pub(crate) const UNKNOWN_ROUND_TRIP: Duration = Duration::from_millis(5);
/// Kept of earlier prompts at most, so that conversations that take turns need not be read again from the start.
const PROMPT_CACHE_BYTES_MAX: u64 = 256 << 20;
const MIB: u64 = 1 << 20;
/// A draft model that is not much smaller than its model drafts no faster than that speaks.
const DRAFT_PARTS: u64 = 5;
/// Tokens of context of one request, where nobody says it: what llama-server was given so far.
const CONTEXT_TOKENS: NonZeroU32 = NonZeroU32::new(4096).expect("it is not zero");

/// What the configuration takes too.
const CONTEXT_TOKENS_RANGE: std::ops::RangeInclusive<u32> = 1..=16_777_216;

/// A model of this machine's disk with all that placement asks of it.
#[derive(Debug, Clone)]
pub(crate) struct Prepared {
    pub(crate) model: Model,
    pub(crate) needs: Needs,
    /// Architecture and quantization: models of one kind run at one speed.
    pub(crate) kind: String,
    /// The draft model that fits it.
    pub(crate) draft: Option<Model>,
    /// Whether its owner wants it split even where one machine would do.
    pub(crate) split: bool,
}

impl Node {
    /// Finds a model by what a user calls it, and reads what it needs.
    pub(crate) async fn prepare(
        &self,
        wanted: &str,
        split: Option<bool>,
        context: Option<u32>,
    ) -> Result<Prepared, Unprepared> {
        let inference = self.config().inference.clone();
        if context.is_some_and(|tokens| !CONTEXT_TOKENS_RANGE.contains(&tokens)) {
            let message = "a context has 1 to 16777216 tokens";
            return Err(ApiError::new(ErrorCode::BadRequest, message).into());
        }
        let tokens = context.or(inference.ctx_size).and_then(NonZeroU32::new).unwrap_or(CONTEXT_TOKENS);
        let slots = inference.slots.and_then(NonZeroU32::new).unwrap_or(NonZeroU32::MIN);
        let split = split.unwrap_or(inference.split);
        let wanted = wanted.to_owned();
        let elsewhere = self.elsewhere(&wanted);
        let inner = self.inner.clone();
        let prepared = tokio::task::spawn_blocking(move || {
            let catalogue = inner.disk.scan(&inference.model_dirs);
            if inner.disk.models().as_slice() != catalogue.models() {
                // What a person has just put there is what they ask for: the mesh hears of it too.
                inner.disk.look();
            }
            let model = catalogue.resolve(&wanted).map_err(|error| match error {
                ResolveError::NotHere(_) => Unprepared::NotHere,
                ResolveError::NotFound { .. } => {
                    let error = unresolved(&error, &catalogue);
                    let elsewhere = elsewhere.map_or(error.clone(), |mend| error.with_mend(mend));
                    Unprepared::Unknown(elsewhere)
                }
                error => unresolved(&error, &catalogue).into(),
            })?;
            let unusable = |error: &(dyn std::error::Error + 'static)| {
                ApiError::new(
                    ErrorCode::UnknownModel,
                    format!("{} cannot be run: {}", model.name, chain(error)),
                )
            };
            let facts = catalogue.facts(&model).map_err(|error| unusable(&error))?;
            let mut context = Context::new(tokens, slots);
            context.prompt_cache_bytes = (facts.weight_bytes.min(PROMPT_CACHE_BYTES_MAX) / MIB) * MIB;
            let needs = Needs::of(&facts, &context).map_err(|error| unusable(&error))?;
            let draft = match &inference.draft {
                Draft::Off => None,
                Draft::Path(path) => {
                    let draft = catalogue
                        .resolve(&path.display().to_string())
                        .map_err(|error| unresolved(&error, &catalogue))?;
                    let read = catalogue.facts(&draft).map_err(|error| unusable(&error))?;
                    check_vocabulary(facts.tokenizer.as_ref(), read.tokenizer.as_ref()).map_err(|error| {
                        let message = format!("{} cannot draft for {}: {error}", draft.name, model.name);
                        ApiError::new(ErrorCode::BadRequest, message)
                    })?;
                    Some((draft, read))
                }
                Draft::Auto => found_draft(&catalogue, &model, &facts),
            };
            let (draft, needs) = match draft {
                Some((draft, read)) => {
                    (Some(draft), needs.with_draft(&facts, &read).map_err(|error| unusable(&error))?)
                }
                None => (None, needs),
            };
            let kind = format!("{} {}", facts.architecture, facts.quantization());
            Ok(Prepared { model, needs, kind, draft, split })
        });
        prepared.await.map_err(|error| ApiError::new(ErrorCode::Internal, error.to_string()))?
    }

    /// Compares the ways to run a model from here.
    pub(crate) fn placed(&self, prepared: &Prepared) -> Plan {
        let wishes = Wishes { split: prepared.split, ..self.standing_wishes() };
        let (me, others) = (self.own_machine(&prepared.model), self.others(&prepared.model));
        plan(&prepared.model.name, &prepared.needs, &me, &others, &wishes)
    }

    /// What the owner wants of every plan.
    pub(crate) fn standing_wishes(&self) -> Wishes {
        let tensor_split = self.config().inference.tensor_split.as_deref().and_then(parse_shares);
        Wishes { tensor_split, ..Wishes::default() }
    }

    /// This node.
    pub(crate) fn own_machine(&self, model: &Model) -> Machine {
        let facts = self.machine_facts(self.own_facts().memory.as_ref());
        let known = Known { id: self.id(), name: self.name().to_string(), link: Link::HERE };
        Machine { has_file: true, serves: true, ..machine(known, &facts, facts.memory_for(&model.name)) }
    }

    /// The scope with whose members this node places models: the first one that it entered by an invite, or else that of the
    /// uninvited. A claim to host a model names its workers, and nobody learns of those of another scope.
    pub(crate) fn placing_scope(&self) -> Option<Scope> {
        let scopes = self.scopes().list();
        scopes.iter().find(|scope| scope.uninvited.is_none()).or(scopes.first()).cloned()
    }

    /// The members of that scope, as far as they take part.
    fn others(&self, model: &Model) -> Vec<Machine> {
        let Some(scope) = self.placing_scope() else { return Vec::new() };
        let Some(gossip) = self.gossip(&scope.id()) else { return Vec::new() };
        let links = self.transport().links();
        let members = gossip.members();
        let alive = members
            .iter()
            .filter(|member| member.state == State::Alive && role_here(&scope, member) == Role::Member);
        let machine = |member: &Arc<Member>| {
            let link = links.iter().find(|link| link.peer.scope == scope.id() && link.peer.id == member.id);
            let round_trip = link.and_then(|link| link.path.rtt).unwrap_or(UNKNOWN_ROUND_TRIP);
            member_machine(member, model, Link::new(round_trip))
        };
        alive.filter_map(machine).collect()
    }
}

/// Why a model is not ready to be placed.
#[derive(Debug)]
pub(crate) enum Unprepared {
    /// It is not on this disk, and can be downloaded.
    NotHere,
    /// No model of this disk has the name.
    Unknown(ApiError),
    Refused(ApiError),
}

impl From<ApiError> for Unprepared {
    fn from(error: ApiError) -> Self {
        Self::Refused(error)
    }
}

impl From<Unprepared> for ApiError {
    fn from(error: Unprepared) -> Self {
        match error {
            Unprepared::NotHere => {
                ApiError::new(ErrorCode::UnknownModel, "the model is not on this disk yet")
                    .with_mend("download it with `qmt-cli models pull`")
            }
            Unprepared::Unknown(error) | Unprepared::Refused(error) => error,
        }
    }
}

/// Names that a mend lists; more are to be looked up.
const NAMES_MAX: usize = 8;

/// Why a name means no model here, and what mends that.
fn unresolved(error: &ResolveError, catalogue: &Catalogue) -> ApiError {
    let answer = ApiError::new(ErrorCode::UnknownModel, chain(error));
    let names: Vec<&str> = catalogue.models().iter().map(|model| model.name.as_str()).collect();
    match error {
        ResolveError::NotFound { folders, .. } => {
            let here = match names.len() {
                0 => "there is no model on this disk yet".to_owned(),
                all @ 1..=NAMES_MAX => {
                    format!("on this disk {}: {}", if all == 1 { "is" } else { "are" }, names.join(", "))
                }
                all => format!("on this disk are {all} models, such as {}", names[..NAMES_MAX].join(", ")),
            };
            let folder = folders
                .first()
                .map_or_else(|| "a folder of model_dirs".to_owned(), |folder| folder.display().to_string());
            answer.with_mend(format!(
                "{here}; put a GGUF file into {folder}, or download one with `qmt-cli models pull org/repo/file.gguf`"
            ))
        }
        ResolveError::NoFile(_) => {
            answer.with_mend("give the path of a GGUF file, or the name of a model of this disk")
        }
        _ => answer,
    }
}

/// The smallest model on disk that speaks the same vocabulary and is small enough to be worth it.
fn found_draft(catalogue: &Catalogue, model: &Model, facts: &Metadata) -> Option<(Model, Arc<Metadata>)> {
    let small = |draft: &&Model| {
        draft.path != model.path
            && draft.missing.is_empty()
            && draft.file_bytes < model.file_bytes / DRAFT_PARTS
    };
    let mut drafts: Vec<&Model> = catalogue.models().iter().filter(small).collect();
    drafts.sort_by_key(|draft| draft.file_bytes);
    drafts.into_iter().find_map(|draft| {
        let read = catalogue.facts(draft).ok()?;
        check_vocabulary(facts.tokenizer.as_ref(), read.tokenizer.as_ref()).ok()?;
        Some((draft.clone(), read))
    })
}

/// What is known of a machine beside what it says itself.
pub(crate) struct Known {
    pub(crate) id: NodeId,
    pub(crate) name: String,
    pub(crate) link: Link,
}

/// A member as placement sees it; `None` when it says nothing of its machine.
fn member_machine(member: &Member, model: &Model, link: Link) -> Option<Machine> {
    let value = |key: &str| member.value(key).map(|bytes| bytes.as_ref());
    let facts: MachineFacts = serde_json::from_slice(value(MACHINE_KEY)?).ok()?;
    let has_file =
        decode_disk(value).iter().any(|found| found.model == model.name && found.bytes == model.file_bytes);
    let serves = offers_of(member).iter().any(|offer| offer.model == model.name && !offer.provider);
    let known = Known { id: member.id, name: member.name.to_string(), link };
    Some(Machine { has_file, serves, ..machine(known, &facts, facts.memory_for(&model.name)) })
}

/// A machine of which models may take so much memory.
pub(crate) fn machine(known: Known, facts: &MachineFacts, memory: u64) -> Machine {
    let speed = |measured: Option<SpeedFacts>| {
        measured.map_or(Speed::UNKNOWN, |speed| Speed {
            bytes_per_second: speed.bytes_per_second,
            flops: speed.flops,
        })
    };
    // The ledger does not say which device holds what: a GPU's part is what is left of all of them.
    let held = facts.memory.saturating_sub(memory);
    let gpus_total = facts.gpus.iter().map(|gpu| gpu.memory).fold(0, u64::saturating_add).max(1);
    let left = |gpu: &GpuFacts| {
        let part =
            u128::from(gpu.memory) * u128::from(gpus_total.saturating_sub(held)) / u128::from(gpus_total);
        u64::try_from(part).unwrap_or(gpu.memory)
    };
    let gpu = |gpu: &GpuFacts| Gpu { name: gpu.name.clone(), memory: left(gpu), speed: speed(gpu.speed) };
    Machine {
        id: known.id,
        name: known.name,
        memory,
        gpus: facts.gpus.iter().map(gpu).collect(),
        speed: speed(facts.speed),
        link: known.link,
        build: facts.build.clone(),
        has_file: false,
        serves: false,
        lends: facts.lends,
    }
}
