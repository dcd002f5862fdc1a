#![allow(clippy::unwrap_used)]
//! The store beside a model of it that is obviously right: a list of lists.

use proptest::prelude::*;

use super::tests::{all, append, created, forked, home, id, piece};
use super::*;

#[derive(Debug, Clone)]
enum Step {
    Create,
    /// To several sessions at once, so that they are in one group.
    Append {
        sessions: Vec<usize>,
        count: usize,
    },
    Fork {
        session: usize,
        cut: usize,
    },
    Delete {
        session: usize,
    },
    Export {
        session: usize,
    },
    Read {
        session: usize,
        after: usize,
        events: u32,
        bytes: usize,
    },
    Reopen,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let session = 0..8_usize;
    let step = prop_oneof![
        2 => Just(Step::Create),
        6 => (proptest::collection::vec(session.clone(), 1..6), 1..12_usize)
            .prop_map(|(sessions, count)| Step::Append { sessions, count }),
        3 => (session.clone(), 0..60_usize).prop_map(|(session, cut)| Step::Fork { session, cut }),
        1 => session.clone().prop_map(|session| Step::Delete { session }),
        1 => session.clone().prop_map(|session| Step::Export { session }),
        4 => (session, 0..60_usize, 1..9_u32, 1..900_usize)
            .prop_map(|(session, after, events, bytes)| Step::Read { session, after, events, bytes }),
        1 => Just(Step::Reopen),
    ];
    proptest::collection::vec(step, 1..40)
}

/// The bodies of each session, in order; none when it was deleted.
type Model = Vec<Option<Vec<Body>>>;

fn name(index: usize) -> SessionId {
    id(index as u128 + 1)
}

async fn run(steps: Vec<Step>) {
    let super::tests::Home { mut store, folder } = home().await;
    let mut model: Model = Vec::new();
    let mut said = 0;
    for step in steps {
        let there = |model: &Model, index: usize| model.get(index).is_some_and(Option::is_some);
        match step {
            Step::Create => {
                store.create(name(model.len()), 1, vec![created()]).await.unwrap();
                model.push(Some(vec![created()]));
            }
            Step::Append { sessions, count } => {
                let appends = sessions.iter().map(|&index| {
                    said += 1;
                    let bodies: Vec<Body> =
                        (0..count).map(|number| piece(format!("{said}.{number}"))).collect();
                    if let Some(Some(log)) = model.get_mut(index) {
                        log.extend(bodies.clone());
                    }
                    append(name(index), bodies)
                });
                let appends: Vec<Append> = appends.collect();
                let done =
                    futures_util::future::join_all(appends.into_iter().map(|append| store.append(append)))
                        .await;
                for (index, done) in sessions.into_iter().zip(done) {
                    assert_eq!(done.is_ok(), there(&model, index), "{done:?}");
                }
            }
            Step::Fork { session, cut } => {
                let forked = vec![forked(name(session), cut as u64)];
                let done = store
                    .fork(name(session), EventNumber(cut as u64), name(model.len()), 1, forked.clone())
                    .await;
                let parent =
                    model.get(session).cloned().flatten().filter(|log| (1..=log.len()).contains(&cut));
                assert_eq!(done.is_ok(), parent.is_some(), "{done:?}");
                if let Some(mut log) = parent {
                    log.truncate(cut);
                    log.extend(forked);
                    model.push(Some(log));
                }
            }
            Step::Delete { session } => {
                assert_eq!(store.delete(name(session)).await.unwrap(), there(&model, session));
                if let Some(log) = model.get_mut(session) {
                    *log = None;
                }
            }
            Step::Export { session } => {
                let mut text = Vec::new();
                if let Some(Some(log)) = model.get(session) {
                    assert_eq!(store.export(name(session), &mut text).await.unwrap(), log.len() as u64);
                    assert_eq!(store.import(&mut text.as_slice(), 1).await.unwrap().added, 0);
                }
            }
            Step::Read { session, after, events, bytes } => {
                let read =
                    store.read(name(session), EventNumber(after as u64), ReadLimit { events, bytes }).await;
                let Some(Some(log)) = model.get(session) else {
                    assert!(read.is_err());
                    continue;
                };
                let expected = log.get(after..).unwrap_or_default();
                let read = read.unwrap();
                assert!(read.len() <= events as usize && read.is_empty() == expected.is_empty());
                for ((event, body), number) in read.iter().zip(expected).zip(after as u64 + 1..) {
                    assert_eq!((&event.body, event.number.0), (body, number));
                }
            }
            Step::Reopen => {
                store.close().await;
                store = Store::open(&folder.path().join("sessions.db"), Config::default()).await.unwrap();
                assert_eq!(store.repair(), None);
            }
        }
    }
    for (index, log) in model.iter().enumerate() {
        let Some(log) = log else { continue };
        let read = all(&store, name(index)).await;
        assert_eq!(read.into_iter().map(|event| event.body).collect::<Vec<_>>(), *log);
    }
    let check = store.check().await.unwrap();
    assert_eq!(check.damages, []);
    store.close().await;
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_history_reads_as_a_list_of_lists_would(steps in steps()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(run(steps));
    }
}
