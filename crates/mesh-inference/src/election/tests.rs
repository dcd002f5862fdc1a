//! One core, told what to know.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::num::NonZeroU32;
use std::sync::LazyLock;
use std::time::Instant;

use mesh_identity::NodeKey;

use super::*;
use crate::gguf::tiny::TinyModel;
use crate::plan::{Context, Link, Machine, Speed};

pub(super) const MODEL: &str = "tiny";
pub(super) const MIB: u64 = 1 << 20;

/// Ids by number; making a key takes its time.
static IDS: LazyLock<Vec<NodeId>> =
    LazyLock::new(|| (0..16).map(|number| NodeKey::from_seed([number + 1; 32]).node_id()).collect());

pub(super) fn id(number: u8) -> NodeId {
    IDS[usize::from(number)]
}

static NEEDS: LazyLock<Arc<Needs>> = LazyLock::new(|| {
    let bytes = TinyModel { layers: 12, feed_forward: 8192, ..TinyModel::default() }.to_bytes();
    let facts =
        crate::gguf::parse(bytes.as_slice(), std::path::Path::new("tiny.gguf"), bytes.len() as u64).unwrap();
    let mut context = Context::new(NonZeroU32::new(2048).unwrap(), NonZeroU32::MIN);
    context.batch = NonZeroU32::new(16).unwrap();
    Arc::new(Needs::of(&facts, &context).unwrap())
});

/// A model of 80 MB that takes some 120 MB alone.
pub(super) fn needs() -> Arc<Needs> {
    NEEDS.clone()
}

/// A member with the file, that serves it and lends.
pub(super) fn member(number: u8, memory: u64) -> Member {
    let machine = Machine {
        id: id(number),
        name: format!("n{number}"),
        memory,
        gpus: Vec::new(),
        speed: Speed::UNKNOWN,
        link: Link::new(Duration::from_millis(1)),
        build: "11434".into(),
        has_file: false,
        serves: false,
        lends: true,
    };
    let facts = ModelFacts { on_disk: true, serves: true, ..ModelFacts::default() };
    Member {
        machine,
        presence: Presence::Alive,
        is_passive: false,
        is_auto: false,
        models: [(MODEL.to_owned(), facts)].into(),
    }
}

fn with(mut member: Member, change: impl FnOnce(&mut ModelFacts)) -> Member {
    change(member.models.entry(MODEL.to_owned()).or_default());
    member
}

fn lender(number: u8, memory: u64) -> Member {
    with(member(number, memory), |facts| *facts = ModelFacts::default())
}

struct Probe {
    core: Election,
    now: Instant,
}

impl Probe {
    fn new(me: Member) -> Self {
        let now = Instant::now();
        let mut probe = Self { core: Election::new(me, Config::default(), now), now };
        probe.tell(Input::Needs { model: MODEL.into(), needs: Some(needs()) });
        probe
    }

    fn tell(&mut self, input: Input) -> Vec<Output> {
        self.core.handle(input, self.now);
        std::iter::from_fn(|| self.core.poll_output()).collect()
    }

    fn sees(&mut self, member: Member) -> Vec<Output> {
        self.tell(Input::Member(Box::new(member)))
    }

    /// What comes of all deadlines within this time.
    fn after(&mut self, time: Duration) -> Vec<Output> {
        let end = self.now + time;
        let mut outputs = Vec::new();
        while let Some(next) = self.core.next_deadline().filter(|next| *next <= end) {
            self.now = self.now.max(next);
            outputs.extend(self.tell(Input::Tick));
            let next = self.core.next_deadline();
            assert!(next.is_none_or(|next| next > self.now), "the next deadline lies in the future");
        }
        self.now = end;
        outputs
    }
}

const ALL: u64 = 512 * MIB;
/// Holds about two thirds of it.
const PART: u64 = 80 * MIB;

fn hosts(outputs: &[Output]) -> Vec<(u64, Vec<NodeId>)> {
    let host = |output: &Output| match output {
        Output::Host { epoch, plan, .. } => Some((*epoch, plan.split().unwrap().workers.clone())),
        _ => None,
    };
    outputs.iter().filter_map(host).collect()
}

const SOON: Duration = Duration::from_secs(3);

#[test]
fn what_fits_is_run_alone_whoever_else_is_there() {
    let mut probe = Probe::new(member(0, PART));
    probe.after(SOON);
    let mut probe2 = Probe::new(member(1, ALL));
    assert_eq!(probe2.sees(member(0, ALL)), []);
    assert_eq!(probe2.after(SOON), []);
    let served = Probe::new(member(2, ALL)).tell(Input::Needs { model: MODEL.into(), needs: Some(needs()) });
    assert_eq!(served, [], "it runs already");
    // The one that is too small asks the others.
    let outputs = [probe.sees(member(1, ALL)), probe.after(SOON)].concat();
    let runs_at = Output::Standby { model: MODEL.into(), why: Standby::RunsAt(id(1)) };
    assert!(outputs.contains(&runs_at), "{outputs:?}");
}

#[test]
fn the_largest_hosts_what_fits_nowhere() {
    let mut small = Probe::new(member(0, PART));
    let mut large = Probe::new(member(1, PART + MIB));
    small.sees(member(1, PART + MIB));
    large.sees(member(0, PART));
    let outputs = large.after(SOON);
    let [(epoch, workers)] = &hosts(&outputs)[..] else { panic!("{outputs:?}") };
    assert_eq!((*epoch, workers.as_slice()), (1, [id(0), id(1)].as_slice()));
    let mut expected = workers.clone();
    expected.sort();
    assert!(
        matches!(&outputs[0], Output::Publish { claim: Some(claim), .. } if claim.workers == expected),
        "{outputs:?}"
    );
    let outputs = small.after(SOON);
    assert_eq!(outputs, [Output::Standby { model: MODEL.into(), why: Standby::HostedBy(id(1)) }]);
    // Equal memory: the lower id.
    let mut first = Probe::new(member(0, PART));
    first.sees(member(1, PART));
    assert_eq!(hosts(&first.after(SOON)).len(), usize::from(id(0) < id(1)));
}

#[test]
fn an_elected_node_that_never_claims_is_passed_over() {
    let mut small = Probe::new(member(0, PART));
    small.sees(member(1, PART + MIB));
    small.sees(lender(2, PART));
    assert_eq!(hosts(&small.after(SOON)), []);
    let outputs = small.after(Duration::from_secs(10));
    assert_eq!(hosts(&outputs)[0].1, [id(2), id(0)], "{outputs:?}");
}

fn hosting() -> Probe {
    let mut probe = Probe::new(member(0, PART));
    probe.sees(lender(1, PART));
    probe.sees(lender(2, PART - MIB));
    let outputs = probe.after(SOON);
    assert_eq!(hosts(&outputs), [(1, vec![id(1), id(0)])], "{outputs:?}");
    probe
}

#[test]
fn news_that_change_nothing_restart_nothing() {
    let mut probe = hosting();
    probe.sees(lender(2, PART - 2 * MIB));
    probe.sees(lender(3, PART));
    probe.sees(Member { presence: Presence::Suspect, ..lender(1, PART) });
    assert_eq!(probe.after(SOON), [Output::Kept { model: MODEL.into(), epoch: 1 }]);
    // What the split holds at its workers is free for it.
    probe.sees(with(lender(1, PART / 8), |facts| facts.held = PART / 8 * 7));
    assert_eq!(probe.after(SOON), [Output::Kept { model: MODEL.into(), epoch: 1 }]);
}

#[test]
fn a_lost_worker_is_replaced_at_once() {
    let mut probe = hosting();
    let outputs = probe.sees(Member { presence: Presence::Down, ..lender(1, PART) });
    assert_eq!(outputs[0], Output::Stop { model: MODEL.into(), why: StopWhy::WorkerLost { worker: id(1) } });
    assert_eq!(hosts(&outputs), [(2, vec![id(2), id(0)])]);
    // Nobody left: it ends, and is said to fit nowhere.
    let share = Input::Share { model: MODEL.into(), epoch: 2, worker: id(2), held_by_epoch: None };
    let outputs = probe.tell(share);
    assert!(
        matches!(
            &outputs[..],
            [Output::Stop { .. }, Output::Publish { claim: None, .. }, Output::Standby { .. }]
        ),
        "{outputs:?}"
    );
    // The worker that was lost is tried again later.
    assert_eq!(hosts(&probe.after(Duration::from_secs(31))), [(3, vec![id(2), id(0)])]);
}

#[test]
fn better_machines_are_taken_when_they_stay() {
    let fast = || {
        let mut fast = lender(3, PART);
        fast.machine.speed.bytes_per_second *= 100.0;
        fast
    };
    let mut probe = hosting();
    probe.sees(fast());
    assert_eq!(hosts(&probe.after(Duration::from_secs(20))), []);
    probe.sees(Member { presence: Presence::Down, ..fast() });
    assert_eq!(hosts(&probe.after(Duration::from_secs(40))), []);
    probe.sees(fast());
    let outputs = probe.after(Duration::from_secs(40));
    assert_eq!(hosts(&outputs), [(2, vec![id(3), id(0)])]);
    assert!(outputs.contains(&Output::Stop { model: MODEL.into(), why: StopWhy::Better }));
}

#[test]
fn news_of_an_earlier_launch_are_none() {
    let mut probe = hosting();
    let share = |epoch| Input::Share { model: MODEL.into(), epoch, worker: id(1), held_by_epoch: Some(7) };
    assert_eq!(probe.tell(share(0)), []);
    // The next epoch is above the one that was in the way.
    assert_eq!(hosts(&probe.tell(share(1))), [(8, vec![id(2), id(0)])]);
}

#[test]
fn of_two_hosts_the_higher_epoch_stays() {
    let claim = |epoch| Some(Claim { epoch, workers: vec![id(1)] });
    let mut probe = hosting();
    let rival = |epoch| with(member(9, PART), |facts| facts.claim = claim(epoch));
    let outputs = probe.sees(rival(2));
    let why = StopWhy::OtherHost { host: id(9), epoch: 2 };
    assert_eq!(outputs[0], Output::Stop { model: MODEL.into(), why });
    assert_eq!(outputs[1], Output::Publish { model: MODEL.into(), claim: None });
    // When it goes, this node follows with a higher one.
    let outputs = probe.sees(Member { presence: Presence::Down, ..rival(2) });
    assert_eq!(hosts(&outputs)[0].0, 3, "{outputs:?}");
    // Equal epochs: the larger memory.
    let mut probe = hosting();
    assert_eq!(
        probe.sees(with(member(9, PART - MIB), |facts| facts.claim = claim(1)))[0],
        Output::Kept { model: MODEL.into(), epoch: 1 }
    );
    assert!(matches!(
        probe.sees(with(member(9, PART + MIB), |facts| facts.claim = claim(1)))[0],
        Output::Stop { .. }
    ));
}

#[test]
fn a_forced_split_waits_until_the_worker_has_made_room() {
    let wants = |member: Member| with(member, |facts| facts.wants_split = true);
    let mut probe = Probe::new(wants(member(0, 2 * ALL)));
    assert_eq!(probe.after(SOON), []);
    let alone = with(member(1, ALL), |facts| facts.runs_alone = true);
    probe.sees(alone);
    let outputs = probe.after(SOON);
    assert_eq!(outputs[0], Output::Stop { model: MODEL.into(), why: StopWhy::Split });
    assert_eq!(hosts(&outputs), []);
    assert_eq!(hosts(&probe.sees(member(1, ALL))), [(1, vec![id(1), id(0)])]);
    // The worker leaves: the host goes back to running it alone.
    let outputs = probe.sees(Member { presence: Presence::Down, ..member(1, ALL) });
    assert_eq!(outputs.last(), Some(&Output::Serve { model: MODEL.into() }));
    // The other side: what runs alone gives way to the claim.
    let mut worker = Probe::new(member(1, ALL));
    let claim = Some(Claim { epoch: 1, workers: vec![id(1)] });
    let host = wants(member(0, 2 * ALL));
    worker.sees(with(host, |facts| facts.claim = claim));
    let outputs = worker.after(SOON);
    assert_eq!(
        outputs[0],
        Output::Stop { model: MODEL.into(), why: StopWhy::OtherHost { host: id(0), epoch: 1 } }
    );
}

#[test]
fn what_is_dropped_stops_at_once_and_comes_back() {
    let mut probe = hosting();
    let outputs = probe.tell(Input::Me(Box::new(lender(0, PART))));
    assert!(matches!(
        &outputs[..],
        [Output::Stop { why: StopWhy::NotServed, .. }, Output::Publish { claim: None, .. }]
    ));
    assert_eq!(hosts(&probe.tell(Input::Me(Box::new(member(0, PART))))).len(), 1);
}

#[test]
fn a_client_runs_nothing_and_is_no_worker() {
    let mut probe = Probe::new(Member { is_passive: true, ..member(0, ALL) });
    assert_eq!(probe.after(SOON), []);
    let mut probe = Probe::new(member(0, PART));
    probe.sees(Member { is_passive: true, ..member(1, ALL) });
    assert_eq!(hosts(&probe.after(SOON)), []);
}

#[test]
fn a_failure_is_tried_again_later() {
    let mut probe = hosting();
    let failed = |epoch| Input::Failed { model: MODEL.into(), epoch, why: "disk".into() };
    assert_eq!(probe.tell(failed(0)), [], "of an earlier run");
    let outputs = probe.tell(failed(1));
    assert!(outputs.contains(&Output::Standby { model: MODEL.into(), why: Standby::Failed("disk".into()) }));
    assert_eq!(hosts(&probe.after(Duration::from_secs(31))), [(2, vec![id(1), id(0)])]);
}

fn joiner(number: u8, on_disk: &[&str]) -> Member {
    let facts = ModelFacts { on_disk: true, ..ModelFacts::default() };
    let models = on_disk.iter().map(|model| ((*model).to_owned(), facts.clone())).collect();
    Member { is_auto: true, models, ..member(number, ALL) }
}

fn assigned(outputs: &[Output]) -> Vec<(&str, AssignWhy)> {
    let of = |output: &Output| match output {
        Output::Assign { model, why, .. } => Some((model.clone(), *why)),
        _ => None,
    };
    let all: Vec<(String, AssignWhy)> = outputs.iter().filter_map(of).collect();
    all.into_iter().map(|(model, why)| (&*model.leak(), why)).collect()
}

#[test]
fn two_joiners_take_different_models() {
    let seeder = || seeder(&["glm", "qwen"]);
    let take = |me: u8, other: u8| {
        let mut probe = Probe::new(joiner(me, &["glm", "qwen", "unwanted"]));
        probe.sees(seeder());
        probe.sees(joiner(other, &["glm", "qwen", "unwanted"]));
        probe.after(SOON)
    };
    let (one, two) = (take(0, 1), take(1, 0));
    let mut all = [assigned(&one), assigned(&two)].concat();
    all.sort_by_key(|(model, _)| *model);
    assert_eq!(all, [("glm", AssignWhy::Unserved), ("qwen", AssignWhy::Unserved)]);
    // Nothing that anybody wants.
    let mut probe = Probe::new(joiner(0, &["other"]));
    probe.sees(seeder());
    assert_eq!(assigned(&probe.after(SOON)), []);
}

/// A node whose owner wants these models, and has none of them.
fn seeder(wanted: &[&str]) -> Member {
    let facts = ModelFacts { is_wanted: true, ..ModelFacts::default() };
    let mut seeder = lender(9, ALL);
    seeder.models.extend(wanted.iter().map(|model| ((*model).to_owned(), facts.clone())));
    seeder
}

/// The same joiner with what it has taken up.
fn holding(mut joiner: Member, model: &str) -> Member {
    let facts =
        ModelFacts { on_disk: true, serves: true, taken_up: true, runs_alone: true, ..ModelFacts::default() };
    joiner.models.insert(model.to_owned(), facts);
    joiner
}

/// What is taken up in the place of what.
fn moves(outputs: &[Output]) -> Vec<String> {
    let of = |output: &Output| match output {
        Output::Assign { model, instead_of: Some(left), .. } => Some(format!("{left} to {model}")),
        _ => None,
    };
    outputs.iter().filter_map(of).collect()
}

#[test]
fn joiners_that_did_not_know_each_other_end_with_different_models() {
    let ids = if id(0) < id(1) { [0, 1] } else { [1, 0] };
    let both = &["glm", "qwen"];
    // Each knows the seeder alone, and takes the first by name.
    for number in ids {
        let mut probe = Probe::new(joiner(number, both));
        probe.sees(seeder(both));
        assert_eq!(assigned(&probe.after(SOON)), [("glm", AssignWhy::Unserved)]);
    }
    let meet = |me: u8, on_disk: &[&str], other: Member| {
        let mut probe = Probe::new(holding(joiner(me, on_disk), "glm"));
        probe.sees(seeder(both));
        probe.sees(other);
        probe.after(SOON)
    };
    let [first, second] = ids;
    let of_both = [
        meet(first, both, holding(joiner(second, both), "glm")),
        meet(second, both, holding(joiner(first, both), "glm")),
    ];
    assert_eq!(of_both.map(|outputs| moves(&outputs)), [Vec::new(), vec!["glm to qwen".to_owned()]]);
    // It cannot give way, and the other one can.
    let only = &["glm"];
    let of_both = [
        meet(first, both, holding(joiner(second, only), "glm")),
        meet(second, only, holding(joiner(first, both), "glm")),
    ];
    assert_eq!(of_both.map(|outputs| moves(&outputs)), [vec!["glm to qwen".to_owned()], Vec::new()]);
    // Once each has its own, nothing moves any more.
    let outputs = meet(first, both, holding(joiner(second, both), "qwen"));
    assert!(moves(&outputs).is_empty());
}

#[test]
fn what_is_assigned_is_not_assigned_again_while_it_is_prepared() {
    let mut probe = Probe::new(joiner(0, &["glm", "qwen"]));
    probe.sees(seeder(&["glm", "qwen"]));
    assert_eq!(assigned(&probe.after(SOON)), [("glm", AssignWhy::Unserved)]);
    let change =
        |mib| Input::Me(Box::new(Member { machine: member(0, mib).machine, ..joiner(0, &["glm", "qwen"]) }));
    let mut hears = |me: Input| {
        let at_once = probe.tell(me);
        [at_once, probe.after(SOON)].concat()
    };
    assert_eq!(assigned(&hears(change(ALL - MIB))), []);
    // Its file is no model: the next one is tried.
    assert_eq!(assigned(&hears(Input::Me(Box::new(joiner(0, &["qwen"]))))), [("qwen", AssignWhy::Unserved)]);
    // Nothing comes of that for long.
    probe.after(Config::default().patience);
    let outputs = probe.tell(change(ALL - 2 * MIB));
    assert_eq!(assigned(&[outputs, probe.after(SOON)].concat()), [("glm", AssignWhy::Unserved)]);
}

#[test]
fn nobody_leaves_a_model_that_is_needed_or_was_asked_for() {
    let second = if id(0) < id(1) { 1 } else { 0 };
    let mine = || holding(joiner(second, &["glm", "qwen"]), "glm");
    let other = || holding(joiner(1 - second, &["glm"]), "glm");
    let meet = |me: Member, other: Member| {
        let mut probe = Probe::new(me);
        probe.sees(seeder(&["glm", "qwen"]));
        probe.sees(other);
        moves(&probe.after(SOON))
    };
    assert_eq!(meet(mine(), other()), ["glm to qwen"]);
    let change = |mut member: Member, change: &dyn Fn(&mut ModelFacts)| {
        change(member.models.get_mut("glm").unwrap());
        member
    };
    let stays = |me, other, why: &str| assert!(meet(me, other).is_empty(), "{why}");
    stays(change(mine(), &|facts| facts.taken_up = false), other(), "somebody loaded it here");
    stays(change(mine(), &|facts| facts.requests = 101), other(), "both have enough to do");
    stays(mine(), change(other(), &|facts| facts.has_failed = true), "the other one failed");
    stays(mine(), change(other(), &|facts| facts.finds_no_room = true), "the other one has no room");
}

#[test]
fn a_model_without_room_at_the_node_that_wants_it_is_taken_up_by_another() {
    let wants_two = |finds_no_room| {
        let serves = ModelFacts { on_disk: true, serves: true, is_wanted: true, ..ModelFacts::default() };
        let mut member = lender(9, PART);
        member.models.insert("glm".into(), ModelFacts { runs_alone: true, ..serves.clone() });
        member.models.insert("qwen".into(), ModelFacts { finds_no_room, ..serves });
        member
    };
    let mut probe = Probe::new(joiner(0, &["glm", "qwen"]));
    probe.sees(wants_two(false));
    assert_eq!(assigned(&probe.after(SOON)), []);
    probe.sees(wants_two(true));
    assert_eq!(assigned(&probe.after(SOON)), [("qwen", AssignWhy::Unserved)]);
}

#[test]
fn demand_calls_up_one_more_node() {
    let served = |requests| {
        let mut busy = member(9, ALL);
        busy.models.get_mut(MODEL).unwrap().requests = requests;
        busy
    };
    let mut probe = Probe::new(joiner(0, &[MODEL]));
    probe.sees(served(100));
    assert_eq!(assigned(&probe.after(SOON)), []);
    probe.sees(served(101));
    assert_eq!(assigned(&probe.after(SOON)), [(MODEL, AssignWhy::Demand { requests: 101, nodes: 1 })]);
}

#[test]
fn demand_is_counted_and_forgotten() {
    let mut probe = Probe::new(lender(0, ALL));
    for _ in 0..5 {
        probe.tell(Input::Requested { model: "qwen".into(), requests: 2 });
    }
    let told = |outputs: Vec<Output>| -> Vec<Vec<(String, u64)>> {
        let requests = |output| match output {
            Output::PublishDemand { requests } => Some(requests),
            _ => None,
        };
        outputs.into_iter().filter_map(requests).collect()
    };
    assert_eq!(told(probe.after(Duration::from_secs(60))), [vec![("qwen".to_owned(), 10)]]);
    assert_eq!(told(probe.after(Duration::from_secs(700))), [vec![]]);
    assert_eq!(probe.core.next_deadline(), None);
    // Callers that invent names fill no memory.
    for number in 0..1000 {
        probe.tell(Input::Requested { model: format!("x{number}"), requests: 1 });
    }
    assert_eq!(told(probe.after(Duration::from_secs(60)))[0].len(), 256);
}
