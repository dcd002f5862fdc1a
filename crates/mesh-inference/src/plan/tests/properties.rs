//! What holds for every plan.

use proptest::prelude::*;

use super::models::*;
use super::*;

/// A hundredth of the layers of Llama 3 8B, with the same proportions.
fn small_needs(layers: u64) -> Needs {
    let shape = Dense { layers, width: 512, inner: 1792, vocabulary: 16_032, heads: (4, 1), ..LLAMA_3_8B };
    Needs::of(&shape.facts(Q8_0), &context(2048, 1)).unwrap()
}

prop_compose! {
    fn machines()(
        all in proptest::collection::vec((0u64..400, 0u32..60, any::<bool>(), any::<bool>(), 0u32..4, 1u32..100), 1..14)
    ) -> Vec<Machine> {
        (1..).zip(all).map(|(number, (memory, rtt, has_file, lends, gpus, speed))| {
            let mut machine = machine(number, memory * MIB);
            machine.link = Link::new(Duration::from_millis(u64::from(rtt)));
            (machine.has_file, machine.lends) = (has_file, lends);
            machine.speed.bytes_per_second = f64::from(speed) * 1e9;
            if gpus == 3 {
                machine.gpus.push(gpu(memory * MIB));
            }
            machine
        }).collect()
    }
}

/// Everything that must hold of a plan.
fn check(plan: &Plan, needs: &Needs, wishes: &Wishes) {
    for alternative in
        plan.alternatives.iter().filter(|way| way.refusal.is_none() || matches!(way.way, Way::Split(_)))
    {
        let mut by_machine = std::collections::BTreeMap::new();
        for share in &alternative.shares {
            assert!(share.needed <= share.memory || alternative.refusal.is_some(), "{share}");
            if share.device == "CPU" || share.device == "host" {
                *by_machine.entry(share.node).or_insert(0) += share.needed;
            }
        }
        // A host's own share and what it needs as a host come from one memory.
        if let Way::Split(split) = &alternative.way {
            let own = alternative.shares.iter().find(|share| share.node == split.host).unwrap();
            assert!(by_machine[&split.host] <= own.memory);
            check_split(split, needs, wishes);
        }
    }
    if let Some(split) = plan.split()
        && !wishes.split
    {
        let rate = |way: &Alternative| way.prediction.map_or(0.0, |prediction| prediction.tokens_per_second);
        let chosen = rate(plan.chosen().unwrap());
        let faster = plan.alternatives[1..].iter().find(|way| way.refusal.is_none() && rate(way) > chosen);
        assert!(faster.is_none(), "{split:?}");
        assert!(plan.alternatives[1..].iter().all(|way| way.refusal.is_some()));
    }
}

fn check_split(split: &Split, needs: &Needs, wishes: &Wishes) {
    assert_eq!(split.tensor_split.len(), split.devices.len());
    let mut next = 0;
    for part in &split.devices {
        assert_eq!(part.first_layer, next);
        next += part.layers;
    }
    assert_eq!(next, needs.layers.len(), "every layer lies somewhere");
    assert_eq!(split.devices.iter().filter(|part| part.has_output).count(), 1);
    let mut workers = split.workers.clone();
    workers.sort();
    workers.dedup();
    assert_eq!(workers.len(), split.workers.len());
    // llama.cpp makes of the numbers what was planned.
    let assigned = assign(&split.tensor_split, needs.layers.len()).unwrap();
    for (index, part) in split.devices.iter().enumerate() {
        let count = assigned.iter().filter(|device| **device == index).count();
        assert_eq!(count, part.layers + usize::from(part.has_output));
    }
    if wishes.tensor_split.is_none() {
        let units = f32::from(u16::try_from(needs.layers.len() + 1).unwrap());
        assert_eq!(split.tensor_split.iter().sum::<f32>(), units);
    }
}

proptest! {
    #[test]
    fn plans_hold_what_they_promise(all in machines(), layers in 1u64..40, split in any::<bool>(), own in 0u64..400) {
        let needs = small_needs(layers);
        let wishes = Wishes { split, ..Wishes::default() };
        let me = host(own * MIB);
        let first = plan("m", &needs, &me, &all, &wishes);
        check(&first, &needs, &wishes);
        // The same facts in another order, and some of them twice, give the same plan.
        let mut turned: Vec<Machine> = all.iter().rev().cloned().collect();
        turned.push(all[0].clone());
        prop_assert_eq!(&first, &plan("m", &needs, &me, &turned, &wishes));
        // More memory never makes a plan impossible.
        if first.chosen().is_some() {
            let more: Vec<Machine> = all.iter().map(|one| Machine { memory: one.memory * 2, ..one.clone() }).collect();
            let me = Machine { memory: me.memory * 2, ..me };
            prop_assert!(plan("m", &needs, &me, &more, &wishes).chosen().is_some());
        }
    }

    #[test]
    fn whole_numbers_of_layers_come_back_as_they_are(counts in proptest::collection::vec(1usize..60, 1..40)) {
        let shares: Vec<f32> = counts.iter().map(|count| f32::from(u16::try_from(*count).unwrap())).collect();
        let assigned = assign(&shares, counts.iter().sum::<usize>() - 1).unwrap();
        for (device, count) in counts.iter().enumerate() {
            prop_assert_eq!(assigned.iter().filter(|at| **at == device).count(), *count);
        }
    }

    #[test]
    fn any_shares_assign_every_layer_in_order(shares in proptest::collection::vec(any::<f32>(), 0..9), layers in 0usize..200) {
        if let Some(assigned) = assign(&shares, layers) {
            prop_assert_eq!(assigned.len(), layers + 1);
            prop_assert!(assigned.is_sorted() && assigned.iter().all(|device| *device < shares.len()));
        }
    }
}

/// As logged by llama-server for a model of 18 layers.
#[test]
fn halves_are_cut_as_llama_server_cuts_them() {
    let assigned = assign(&[0.5, 0.5], 18).unwrap();
    assert_eq!(assigned.iter().filter(|device| **device == 0).count(), 10);
    let assigned = assign(&[1.0, 2.0], 18).unwrap();
    assert_eq!(assigned.iter().filter(|device| **device == 0).count(), 7);
    assert_eq!(assign(&[], 3), None);
    assert_eq!(assign(&[f32::NAN, 1.0], 3), None);
    assert_eq!(assign(&[-1.0, 3.0], 3), None);
    assert_eq!(assign(&[f32::MAX, f32::MAX], 3), None);
}

/// A thousand machines, none of which holds more than a few layers.
#[test]
fn a_thousand_machines_are_compared() {
    let needs = Needs::of(&LLAMA_3_8B.facts(Q8_0), &context(4096, 1)).unwrap();
    let others: Vec<Machine> = (1..=1000)
        .map(|number| {
            let mut one = lender(number, 1500 * MIB + u64::from(number % 97) * MIB);
            one.link = Link::new(Duration::from_micros(u64::from(number % 89) * 300));
            one
        })
        .collect();
    let plan = plan("llama", &needs, &host(2 * GB), &others, &Wishes::default());
    check(&plan, &needs, &Wishes::default());
    let split = plan.split().unwrap();
    assert!((7..=15).contains(&split.devices.len()), "{split:?}");
    assert!(plan.left_out.is_empty());
    // llama.cpp knows no more than 15 devices beside the CPU, however many there are.
    let small: Vec<Machine> =
        others.iter().map(|one| Machine { memory: one.memory / 3, ..one.clone() }).collect();
    let plan = super::plan("llama", &needs, &host(2 * GB), &small, &Wishes::default());
    assert!(plan.chosen().is_none(), "{plan}");
}
