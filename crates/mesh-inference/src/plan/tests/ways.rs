//! What is chosen, and why.

use super::models::*;
use super::*;

fn needs() -> Needs {
    Needs::of(&LLAMA_3_8B.facts(Q8_0), &context(4096, 1)).unwrap()
}

fn planned(host: &Machine, others: &[Machine], wishes: &Wishes) -> Plan {
    plan("llama", &needs(), host, others, wishes)
}

fn split_wished() -> Wishes {
    Wishes { split: true, ..Wishes::default() }
}

fn layers(split: &Split) -> Vec<(NodeId, usize, bool)> {
    split.devices.iter().map(|part| (part.node, part.layers, part.has_output)).collect()
}

#[test]
fn what_it_takes_alone_is_told_where_it_does_not_fit() {
    let fits = planned(&host(16 * GB), &[], &Wishes::default());
    let fits_not = planned(&host(GB), &[], &Wishes::default());
    assert!(fits_not.chosen().is_none());
    assert_eq!(fits_not.needed_alone(), fits.taken_by_host());
    assert!(fits_not.needed_alone() > 8 * GB);
}

#[test]
fn what_fits_here_runs_here_alone() {
    let plan = planned(&host(16 * GB), &[machine(1, 64 * GB), lender(2, 64 * GB)], &Wishes::default());
    let chosen = plan.chosen().unwrap();
    assert_eq!(chosen.way, Way::Solo);
    // 8.5 GB of weights at 50 GB/s, less the embedding.
    let rate = chosen.prediction.unwrap().tokens_per_second;
    assert!((5.8..6.4).contains(&rate), "{rate}");
    assert!(plan.to_string().contains("  32 layers  "), "{plan}");
    assert!(!plan.to_string().contains("33 layers"), "the output is none: {plan}");
    let refused: Vec<Option<Refusal>> = plan.alternatives.iter().map(|other| other.refusal.clone()).collect();
    assert_eq!(refused, [None, Some(Refusal::Slower), Some(Refusal::NotNeeded)]);
}

#[test]
fn what_fits_elsewhere_runs_there() {
    let mut fast = machine(2, 4 * GB);
    fast.gpus.push(gpu(16 * GB));
    let plan =
        planned(&host(4 * GB), &[machine(1, 64 * GB), fast.clone(), lender(3, 64 * GB)], &Wishes::default());
    assert_eq!(plan.chosen().unwrap().way, Way::Remote { node: fast.id });
    assert!(matches!(
        plan.alternatives.iter().find(|way| way.way == Way::Solo).unwrap().refusal,
        Some(Refusal::Memory { .. })
    ));
}

#[test]
fn the_fewest_workers_that_suffice_are_taken() {
    let others = [lender(1, 3 * GB), lender(2, 3 * GB), lender(3, 6 * GB), lender(4, 2 * GB)];
    let plan = planned(&host(6 * GB), &others, &Wishes::default());
    let split = plan.split().unwrap();
    assert_eq!(split.workers, [id(3), id(0)], "the host lends itself its CPU, last");
    assert_eq!(split.gpu_layers, 33);
    let parts = layers(split);
    assert_eq!(parts.iter().map(|part| part.1).sum::<usize>(), 32);
    assert!(parts[1].2, "what comes back of the output crosses no network");
    assert_eq!(split.tensor_split.iter().sum::<f32>(), 33.0);
    assert!(plan.lent_by(&id(3)) <= 6 * GB && plan.lent_by(&id(1)) == 0);
    assert!(plan.lent_by(&id(0)) + plan.taken_by_host() <= 6 * GB && plan.taken_by_host() > 0);
}

#[test]
fn a_split_is_made_when_asked_for() {
    let others = [lender(1, 16 * GB), lender(2, 16 * GB)];
    let plan = planned(&host(32 * GB), &others, &split_wished());
    let split = plan.split().unwrap();
    assert_eq!(split.workers.len(), 2, "one worker and the host");
    let solo = plan.alternatives.iter().find(|way| way.way == Way::Solo).unwrap();
    assert_eq!(solo.refusal, Some(Refusal::SplitWanted));
    assert!(
        solo.prediction.unwrap().tokens_per_second
            > plan.chosen().unwrap().prediction.unwrap().tokens_per_second
    );
    // About in proportion to memory.
    assert!((9..=13).contains(&layers(split)[0].1), "{:?}", layers(split));
    let wishes = Wishes { workers: NonZeroUsize::new(2), ..split_wished() };
    assert_eq!(planned(&host(32 * GB), &others, &wishes).split().unwrap().workers.len(), 3);
    let wishes = Wishes { workers: NonZeroUsize::new(3), ..split_wished() };
    assert_eq!(planned(&host(32 * GB), &others, &wishes).chosen().unwrap().way, Way::Solo);
}

#[test]
fn a_near_worker_is_taken_before_a_far_one() {
    let mut far = lender(1, 9 * GB);
    far.link = Link::new(Duration::from_millis(80));
    let near = lender(2, 8 * GB);
    let plan = planned(&host(4 * GB), &[far.clone(), near.clone()], &Wishes::default());
    assert_eq!(plan.split().unwrap().workers[0], near.id);
    // Unless only the far one suffices.
    let plan = planned(&host(4 * GB), &[far.clone(), lender(2, 3 * GB)], &Wishes::default());
    assert_eq!(plan.split().unwrap().workers[0], far.id);
}

#[test]
fn gpus_of_the_host_come_last_and_its_cpu_is_not_among_them() {
    let mut me = host(8 * GB);
    me.gpus.push(gpu(6 * GB));
    me.gpus[0].memory = 5 * GB;
    me.memory = 2 * GB;
    let plan = planned(&me, &[lender(1, 9 * GB)], &split_wished());
    let split = plan.split().unwrap();
    assert_eq!(split.workers, [id(1)]);
    assert_eq!(split.devices.iter().map(|part| part.device.as_str()).collect::<Vec<_>>(), ["CPU", "CUDA0"]);
    assert!(split.devices[1].has_output);
}

#[test]
fn a_worker_with_two_gpus_is_one_worker_with_two_devices() {
    let mut worker = lender(1, GB);
    worker.gpus = vec![gpu(5 * GB), Gpu { name: "CUDA1".into(), ..gpu(5 * GB) }];
    let plan = planned(&host(4 * GB), &[worker], &Wishes::default());
    let split = plan.split().unwrap();
    assert_eq!(split.workers, [id(1), id(0)]);
    assert_eq!(split.devices.len(), 3);
    assert_eq!(split.tensor_split.len(), 3);
}

#[test]
fn a_host_too_small_for_layers_hosts_all_the_same() {
    let plan = planned(&host(GB), &[lender(1, 20 * GB)], &Wishes::default());
    let split = plan.split().unwrap();
    assert_eq!((split.workers.as_slice(), split.devices.len()), ([id(1)].as_slice(), 1));
    // Not even the embedding: nothing can be done.
    let plan = planned(&host(GB / 4), &[lender(1, 20 * GB)], &Wishes::default());
    assert!(plan.chosen().is_none());
    assert!(plan.to_string().contains("Nothing of this can be done"), "{plan}");
}

#[test]
fn the_owners_shares_are_taken_or_refused() {
    let others = [lender(1, 16 * GB)];
    let wishes = |shares: &str| Wishes { tensor_split: parse_shares(shares), ..split_wished() };
    let plan = planned(&host(16 * GB), &others, &wishes("1,2"));
    let split = plan.split().unwrap();
    // By llama.cpp's rule: of 33 parts those below a third.
    assert_eq!(layers(split), [(id(1), 11, false), (id(0), 21, true)]);
    assert_eq!(split.tensor_split, [1.0, 2.0]);
    for (shares, given) in [("1,2,3", 3), ("0,0", 2), ("1,nan", 2)] {
        let plan = planned(&host(16 * GB), &others, &wishes(shares));
        let split = plan.alternatives.iter().find(|way| way.way == Way::NoSplit).unwrap();
        assert_eq!(split.refusal, Some(Refusal::Shares { given }), "{shares}");
    }
    // More than the machine holds is never done.
    let plan = planned(&host(16 * GB), &[lender(1, 2 * GB)], &wishes("9,1"));
    assert!(plan.split().is_none());
    assert_eq!(parse_shares("1,x"), None);
    assert_eq!(parse_shares("3/1"), Some(vec![3.0, 1.0]));
}

#[test]
fn who_cannot_be_a_worker_is_told_why() {
    let old = Machine { build: "9000".into(), ..lender(1, 16 * GB) };
    let mean = Machine { lends: false, ..lender(2, 16 * GB) };
    let tiny = lender(3, MIB);
    let plan = planned(&host(4 * GB), &[old, mean, tiny], &Wishes::default());
    let why: Vec<String> =
        plan.left_out.iter().map(|left| format!("{}: {}", left.machine, left.why)).collect();
    let text = why.join("\n");
    assert!(text.contains("m1: its llama.cpp is \"9000\", the host's is \"11434\""), "{text}");
    assert!(
        text.contains("m2: it lends no memory") && text.contains("m3: its memory holds not one layer"),
        "{text}"
    );
    let split = plan.alternatives.iter().find(|way| way.way == Way::NoSplit).unwrap();
    assert_eq!(split.refusal, Some(Refusal::NoWorkers));
}

#[test]
fn a_plan_explains_itself() {
    let plan = planned(&host(6 * GB), &[lender(1, 3 * GB), lender(3, 6 * GB)], &Wishes::default());
    let text = plan.to_string();
    for part in [
        "32 layers",
        "-> split over 2 devices, hosted by m0",
        "alone on m0",
        "no: ",
        "--tensor-split",
        "-ngl 33",
    ] {
        assert!(text.contains(part), "{part} in:\n{text}");
    }
    let json = serde_json::to_value(&plan).unwrap();
    assert_eq!(json["host"], id(0).to_string());
    assert_eq!(json["alternatives"][0]["way"]["split"]["gpu_layers"], 33);
    assert_eq!(json["alternatives"][1]["refusal"]["memory"]["memory"], 6 * GB);
}

#[test]
fn a_worker_that_was_never_measured_counts_as_fast_as_the_host() {
    let slow = Speed { bytes_per_second: 5e9, flops: 1e11 };
    let host = Machine { speed: slow, ..host(16 * GB) };
    let with = |speed| {
        let worker = Machine { speed, ..lender(1, 64 * GB) };
        planned(&host, &[worker], &split_wished()).chosen().unwrap().prediction.unwrap().tokens_per_second
    };
    assert_eq!(with(Speed::UNKNOWN), with(slow));
    assert!(
        with(Speed { bytes_per_second: 2.1e10, ..slow }) > with(slow) * 1.1,
        "a measured one is believed"
    );
    // A processor says nothing of a GPU.
    let with_gpu = Machine { gpus: vec![gpu(GB)], speed: Speed::UNKNOWN, ..lender(1, GB) };
    assert_eq!(with_gpu.as_fast_as_known(&host).speed, Speed::UNKNOWN);
}
