//! Files from members, honest and not, over the mesh in memory.

use std::fs::File;
use std::sync::Arc;

use mesh_identity::Permissions;
use mesh_transport::testing::Mesh;
use mesh_transport::{FrameReader, ResetCode, StreamFault, handler_fn, write_message};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::server::{Server, file};
use super::*;
use crate::fetch::blob::wire::{Answer, Ask, Has, MESSAGE_BYTES_MAX};
use crate::fetch::index::{Index, Stamp};

const MIB: usize = 1 << 20;

/// A node of the mesh with a model folder of its own.
struct Member {
    fetch: Fetch,
    folder: tempfile::TempDir,
}

impl Member {
    /// Has these files.
    fn with(mesh: &Mesh, number: usize, files: &[(&str, &[u8])]) -> Self {
        Self::at_hub(mesh, number, files, "http://127.0.0.1:1")
    }

    fn at_hub(mesh: &Mesh, number: usize, files: &[(&str, &[u8])], hub: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for (name, body) in files {
            std::fs::write(folder.path().join(name), body).unwrap();
        }
        let config = config(folder.path()).with_endpoint(hub).unwrap();
        let transport = mesh[number].transport.clone();
        let fetch = Fetch::new(config, Some(transport.clone())).unwrap();
        transport.serve(Fetch::PROTOCOL, fetch.handler());
        Self { fetch, folder }
    }

    /// Says of its file what is true of another one of the same size.
    fn claims(&self, name: &str, honest: &[u8], index: impl FnOnce(Index) -> Index) {
        let path = self.folder.path().join(name);
        let elsewhere = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(elsewhere.path(), honest).unwrap();
        let read =
            Index::read(&File::open(elsewhere.path()).unwrap(), honest.len() as u64, |_| true).unwrap();
        let stamp = Stamp::of(&File::open(&path).unwrap()).unwrap();
        self.fetch.inner.blobs.learn(&path, stamp, Arc::new(index(read)));
    }

    fn given(&self) -> u64 {
        self.fetch.stats().to_members_bytes
    }
}

/// Links the first node with all others.
async fn linked(count: usize) -> Mesh {
    let mesh = Mesh::memory(count).await;
    for other in 1..count {
        mesh[0].transport.link(&mesh.scope(), &mesh[other].id()).await.unwrap();
    }
    mesh
}

/// The hub says what the file is, and gives it too.
async fn hub(body: &[u8]) -> Server {
    let (hash, body) = (sha256(body), body.to_vec());
    Server::start(move |seen, _| {
        file(seen, &body, "\"a\"").with("x-linked-etag", hash).with("x-linked-size", body.len())
    })
    .await
}

async fn shut(members: &[&Member], mesh: &Mesh) {
    for member in members {
        member.fetch.shutdown().await;
    }
    mesh.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_comes_from_several_members_at_once_and_a_liar_is_found_at_its_first_chunk() {
    let body = model(40 * MIB + 5);
    let mut wrong = body.clone();
    wrong.chunks_mut(MIB).for_each(|chunk| *chunk.last_mut().unwrap() ^= 1);
    let (mesh, hub) = (linked(4).await, hub(&body).await);
    let asker = Member::at_hub(&mesh, 0, &[], &hub.url(""));
    let one = Member::with(&mesh, 1, &[("m.gguf", &body)]);
    let two = Member::with(&mesh, 2, &[("other-name.gguf", b"GGUF"), ("m.gguf", &body)]);
    let liar = Member::with(&mesh, 3, &[("m.gguf", &wrong)]);
    for honest in [&one, &two] {
        honest.claims("m.gguf", &body, |index| index);
    }
    liar.claims("m.gguf", &body, |index| index);
    let pulled = done(&asker.fetch.pull("org/repo/m.gguf").unwrap()).await.unwrap();
    assert_eq!(pulled.checked, Checked::Sha256);
    assert_eq!(std::fs::read(asker.folder.path().join("org/repo/m.gguf")).unwrap(), body);
    assert_eq!((hub.count("HEAD"), hub.count("GET")), (1, 0), "no byte from the hub");
    let stats = asker.fetch.stats();
    assert_eq!((stats.lies, stats.from_members_bytes), (1, body.len() as u64));
    assert!(one.given() > 0 && two.given() > 0, "both: {} and {}", one.given(), two.given());
    assert!(liar.given() <= 3 * MIB as u64, "one chunk a stream: {}", liar.given());
    shut(&[&asker, &one, &two, &liar], &mesh).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_whose_whole_file_is_a_lie_are_outvoted_by_the_hash() {
    let body = model(3 * MIB);
    let mut wrong = body.clone();
    wrong[2 * MIB] ^= 1;
    let (mesh, hub) = (linked(4).await, hub(&body).await);
    let asker = Member::at_hub(&mesh, 0, &[], &hub.url(""));
    let honest = Member::with(&mesh, 1, &[("m.gguf", &body)]);
    honest.claims("m.gguf", &body, |index| index);
    // Two of three agree on chunks that make another file, and say it has the hash that is asked for.
    let liars = [2, 3].map(|number| Member::with(&mesh, number, &[("m.gguf", &wrong)]));
    for liar in &liars {
        liar.claims("m.gguf", &wrong, |index| Index { sha256: sha256(&body), ..index });
    }
    let pulled = done(&asker.fetch.pull("org/repo/m.gguf").unwrap()).await.unwrap();
    assert_eq!(std::fs::read(&pulled.files[0]).unwrap(), body);
    assert_eq!((asker.fetch.stats().lies, hub.count("GET")), (2, 0));
    shut(&[&asker, &honest, &liars[0], &liars[1]], &mesh).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_no_honest_member_has_comes_from_the_hub() {
    let body = model(3 * MIB);
    let mut wrong = body.clone();
    wrong[0] ^= 1;
    wrong[MIB + 1] ^= 1;
    let (mesh, hub) = (linked(3).await, hub(&body).await);
    let asker = Member::at_hub(&mesh, 0, &[], &hub.url(""));
    let no_gguf = Member::with(&mesh, 1, &[("m.gguf", &wrong)]);
    let other = Member::with(&mesh, 2, &[("m.gguf", &model(3 * MIB + 1))]);
    no_gguf.claims("m.gguf", &body, |index| index);
    let pulled = done(&asker.fetch.pull("org/repo/m.gguf").unwrap()).await.unwrap();
    assert_eq!(std::fs::read(&pulled.files[0]).unwrap(), body);
    assert_eq!((hub.count("GET"), no_gguf.given(), other.given()), (1, 0, 0));
    shut(&[&asker, &no_gguf, &other], &mesh).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_dies_in_the_middle_is_made_up_for() {
    let body = model(60 * MIB);
    let (mesh, hub) = (linked(3).await, hub(&body).await);
    let asker = Member::at_hub(&mesh, 0, &[], &hub.url(""));
    let stays = Member::with(&mesh, 1, &[("m.gguf", &body)]);
    let dies = Member::with(&mesh, 2, &[("m.gguf", &body)]);
    for member in [&stays, &dies] {
        member.claims("m.gguf", &body, |index| index);
    }
    let pull = asker.fetch.pull("org/repo/m.gguf").unwrap();
    until(&pull, "bytes come", |progress| progress.bytes > 2 * MIB as u64).await;
    mesh[2].transport.shutdown().await;
    done(&pull).await.unwrap();
    assert_eq!(std::fs::read(asker.folder.path().join("org/repo/m.gguf")).unwrap(), body);
    assert_eq!(asker.fetch.stats().lies, 0, "to die is no lie");
    shut(&[&asker, &stays, &dies], &mesh).await;
}

/// Gives the file as a member that has it does, but for the chunks: of each it sends the half, and then nothing.
fn gives_halves(mesh: &Mesh, number: usize, body: &[u8]) {
    let elsewhere = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(elsewhere.path(), body).unwrap();
    let index = Index::read(&File::open(elsewhere.path()).unwrap(), body.len() as u64, |_| true).unwrap();
    let (index, body) = (Arc::new(index), Arc::new(body.to_vec()));
    let serve = handler_fn(move |_: mesh_transport::Member, stream: mesh_transport::Stream| {
        let (index, body) = (index.clone(), body.clone());
        async move {
            let (mut send, recv) = stream.split();
            let mut asks = FrameReader::new(recv, MESSAGE_BYTES_MAX);
            while let Ok(Some(ask)) = asks.next_message::<Ask>().await {
                let (answer, bytes) = match ask {
                    Ask::Have { .. } => {
                        let (sha256, root) = (index.sha256.0, index.root);
                        let has = Has { name: "m.gguf".to_owned(), bytes: index.bytes, sha256, root };
                        (Answer::Have(vec![has]), Vec::new())
                    }
                    Ask::Hashes { .. } => {
                        let count = u32::try_from(index.chunks.len()).unwrap();
                        (Answer::Hashes { count }, index.chunks.concat())
                    }
                    Ask::Chunk { index, .. } => {
                        let from = usize::try_from(index).unwrap() * MIB;
                        let chunk = &body[from..body.len().min(from + MIB)];
                        let bytes = u32::try_from(chunk.len()).unwrap();
                        (Answer::Chunk { bytes }, chunk[..chunk.len() / 2].to_vec())
                    }
                };
                let is_chunk = matches!(answer, Answer::Chunk { .. });
                if write_message(&mut send, &answer, MESSAGE_BYTES_MAX).await.is_err()
                    || send.write_all(&bytes).await.is_err()
                {
                    return;
                }
                if is_chunk {
                    std::future::pending::<()>().await;
                }
            }
        }
    });
    mesh[number].transport.serve(Fetch::PROTOCOL, serve);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_sends_half_and_falls_silent_is_made_up_for() {
    let body = model(8 * MIB + 5);
    let (mesh, hub) = (linked(3).await, hub(&body).await);
    let mut asker = Member::at_hub(&mesh, 0, &[], &hub.url(""));
    let mut config = config(asker.folder.path()).with_endpoint(&hub.url("")).unwrap();
    config.member_timeout = Duration::from_secs(1);
    asker.fetch = Fetch::new(config, Some(mesh[0].transport.clone())).unwrap();
    let stays = Member::with(&mesh, 1, &[("m.gguf", &body)]);
    stays.claims("m.gguf", &body, |index| index);
    gives_halves(&mesh, 2, &body);
    done(&asker.fetch.pull("org/repo/m.gguf").unwrap()).await.unwrap();
    assert_eq!(std::fs::read(asker.folder.path().join("org/repo/m.gguf")).unwrap(), body);
    assert_eq!(
        (asker.fetch.stats().lies, hub.count("GET")),
        (0, 0),
        "silence is no lie, and the other member has all"
    );
    // Alone it gives nothing, and the hub does.
    stays.fetch.shutdown().await;
    std::fs::remove_file(stays.folder.path().join("m.gguf")).unwrap();
    std::fs::remove_file(asker.folder.path().join("org/repo/m.gguf")).unwrap();
    done(&asker.fetch.pull("org/repo/m.gguf").unwrap()).await.unwrap();
    assert_eq!(std::fs::read(asker.folder.path().join("org/repo/m.gguf")).unwrap(), body);
    assert!(hub.count("GET") > 0);
    shut(&[&asker], &mesh).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_means_the_file_that_all_members_agree_on() {
    let (body, other) = (model(2 * MIB + 1), model(MIB));
    let mesh = linked(3).await;
    let asker = Member::with(&mesh, 0, &[]);
    let one = Member::with(&mesh, 1, &[("gemma.gguf", &body), ("qwen.gguf", &body)]);
    let two = Member::with(&mesh, 2, &[("Gemma.GGUF", b"not of the catalogue"), ("qwen.gguf", &other)]);
    // Nothing was hashed before: the members do it now, and are waited for.
    let pulled = done(&asker.fetch.pull("gemma").unwrap()).await.unwrap();
    assert_eq!(
        (pulled.checked, pulled.files),
        (Checked::Members, vec![asker.folder.path().join("gemma.gguf")])
    );
    assert_eq!(std::fs::read(asker.folder.path().join("gemma.gguf")).unwrap(), body);
    let unknown = done(&asker.fetch.pull("llama").unwrap()).await;
    assert!(matches!(unknown, Err(FetchError::NoMember(_))), "{unknown:?}");
    for member in [&one, &two] {
        let pull = member.fetch.pull("qwen").unwrap();
        assert_eq!(done(&pull).await.unwrap().checked, Checked::Here);
    }
    one.claims("qwen.gguf", &body, |index| index);
    two.claims("qwen.gguf", &other, |index| index);
    let differs = done(&asker.fetch.pull("qwen").unwrap()).await.unwrap_err();
    assert!(matches!(differs, FetchError::Differs { .. }), "{differs:?}");
    assert!(differs.to_string().contains("node-1") && differs.to_string().contains("node-2"), "{differs}");
    shut(&[&asker, &one, &two], &mesh).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_stand_in_for_a_hub_that_does_not_answer_and_a_split_model_comes_whole() {
    let parts = [model(MIB + 1), model(MIB + 2)];
    let names = ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"];
    let mesh = linked(2).await;
    let asker = Member::with(&mesh, 0, &[]); // its hub is a port where nobody listens
    let one = Member::with(&mesh, 1, &[(names[0], &parts[0]), (names[1], &parts[1])]);
    let pulled = done(&asker.fetch.pull("org/repo/m-00001-of-00002.gguf").unwrap()).await.unwrap();
    assert_eq!((pulled.checked, pulled.files.len()), (Checked::Members, 2));
    let by_name = Member::with(&mesh, 0, &[]);
    let pulled = done(&by_name.fetch.pull("m").unwrap()).await.unwrap();
    let came: Vec<Vec<u8>> = pulled.files.iter().map(|path| std::fs::read(path).unwrap()).collect();
    assert_eq!(came, parts);
    // A part alone is no model.
    std::fs::remove_file(one.folder.path().join(names[1])).unwrap();
    let third = Member::with(&mesh, 0, &[]);
    let error = done(&third.fetch.pull("m").unwrap()).await.unwrap_err();
    assert!(matches!(error, FetchError::NoMember(_)), "{error:?}");
    shut(&[&asker, &one, &by_name, &third], &mesh).await;
}

/// Asks one thing on a stream of its own.
async fn ask(mesh: &Mesh, from: usize, ask: &Ask) -> Result<Answer, mesh_transport::FrameError> {
    let stream = mesh[from].transport.open(&mesh.scope(), &mesh[1].id(), Fetch::PROTOCOL).await.unwrap();
    let (mut send, recv) = stream.split();
    write_message(&mut send, ask, MESSAGE_BYTES_MAX).await?;
    Ok(FrameReader::new(recv, MESSAGE_BYTES_MAX).next_message().await?.unwrap())
}

fn have(name: &str) -> Ask {
    Ask::Have { name: name.to_owned(), bytes: None, sha256: None }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_models_are_given_and_only_to_members() {
    let mut mesh = linked(2).await;
    let body = model(MIB);
    let one = Member::with(
        &mesh,
        1,
        &[("m.gguf", &body), ("key.txt", b"secret"), ("not.gguf", b"secret"), (".h.gguf", &body)],
    );
    for name in ["key.txt", "not", "not.gguf", ".h.gguf", "../m.gguf", "/etc/passwd", "", &"m".repeat(60_000)]
    {
        assert_eq!(ask(&mesh, 0, &have(name)).await.unwrap(), Answer::Have(Vec::new()), "{name:.20}");
    }
    one.claims("m.gguf", &body, |index| index);
    let Answer::Have(has) = ask(&mesh, 0, &have("m")).await.unwrap() else { panic!("a file") };
    let root = has[0].root;
    for odd in [
        Ask::Chunk { root, index: 1 },
        Ask::Chunk { root, index: u32::MAX },
        Ask::Chunk { root: [0; 32], index: 0 },
        Ask::Hashes { root: [1; 32] },
    ] {
        assert_eq!(ask(&mesh, 0, &odd).await.unwrap(), Answer::Gone, "{odd:?}");
    }
    // A file that changed is not the one that was hashed.
    assert!(matches!(ask(&mesh, 0, &Ask::Chunk { root, index: 0 }).await.unwrap(), Answer::Chunk { .. }));
    std::fs::write(one.folder.path().join("m.gguf"), b"GGUF, another").unwrap();
    assert_eq!(ask(&mesh, 0, &Ask::Chunk { root, index: 0 }).await.unwrap(), Answer::Gone);
    let client = mesh.add(Permissions::CLIENT).await.id();
    assert_eq!(mesh[2].id(), client);
    let refused = ask(&mesh, 2, &have("m")).await.unwrap_err();
    let mesh_transport::FrameError::Io(error) = refused else { panic!("{refused:?}") };
    assert!(
        matches!(
            StreamFault::of(&error),
            Some(StreamFault::Reset(ResetCode::NOT_ALLOWED) | StreamFault::Stopped(ResetCode::NOT_ALLOWED))
        ),
        "{error:?}"
    );
    shut(&[&one], &mesh).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_bytes_break_the_server_and_no_member_takes_all_its_places() {
    let mesh = linked(2).await;
    let one = Member::with(&mesh, 1, &[("m.gguf", &model(MIB))]);
    for bytes in [&[0xff_u8; 64][..], &[0, 0, 0, 3, 9, 9, 9], &[0, 0, 0, 1]] {
        let mut stream = mesh[0].transport.open(&mesh.scope(), &mesh[1].id(), Fetch::PROTOCOL).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = Vec::new();
        let read = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await.unwrap();
        assert!(read.is_err() && answer.is_empty(), "{bytes:?}: {answer:?}");
    }
    let mut held = Vec::new();
    let busy = loop {
        assert!(held.len() < 20, "no bound");
        let stream = mesh[0].transport.open(&mesh.scope(), &mesh[1].id(), Fetch::PROTOCOL).await.unwrap();
        let (mut send, recv) = stream.split();
        write_message(&mut send, &have("nothing"), MESSAGE_BYTES_MAX).await.unwrap();
        let mut answers = FrameReader::new(recv, MESSAGE_BYTES_MAX);
        let answer: Answer = answers.next_message().await.unwrap().unwrap();
        if answer == Answer::Busy {
            break held.len();
        }
        held.push((send, answers));
    };
    assert_eq!(busy, 6);
    drop(held);
    mesh_transport::testing::until("the places are free again", || async {
        matches!(ask(&mesh, 0, &have("nothing")).await, Ok(Answer::Have(_)))
    })
    .await;
    shut(&[&one], &mesh).await;
}

#[test]
fn messages_are_as_they_are_on_the_wire() {
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let framed = |message: &Ask| {
        let mut out = Vec::new();
        futures_util::FutureExt::now_or_never(write_message(&mut out, message, MESSAGE_BYTES_MAX))
            .unwrap()
            .unwrap();
        hex(&out)
    };
    assert_eq!(framed(&have("m")), "000000050001".to_owned() + "6d0000");
    assert_eq!(
        framed(&Ask::Chunk { root: [1; 32], index: 300 }),
        format!("0000002302{}ac02", "01".repeat(32))
    );
}
