//! Peers that do not keep to `rpc/2`.

use std::time::Duration;

use mesh_transport::testing::until;
use mesh_transport::{Member, Stream, handler_fn};
use mesh_tunnel::{Config, Policy, RPC_PROTOCOL, RpcFault};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::rpc_world::{HELLO, Host, Model, Server, World, frame, rpc, tensor};

/// A question of `rpc/2` for the service, as its bytes are.
fn question() -> Vec<u8> {
    let name = rpc();
    let mut body = vec![u8::try_from(name.as_str().len()).unwrap()];
    body.extend_from_slice(name.as_str().as_bytes());
    body.extend_from_slice(b"\x02b1\x00");
    [&u32::try_from(body.len()).unwrap().to_be_bytes()[..], &body].concat()
}

#[tokio::test]
async fn a_hostile_entry_is_reset_and_harms_nobody() {
    let config =
        Config { rpc: Policy { frame_bytes_max: 1 << 20, ..Policy::default() }, ..Config::default() };
    let (world, server) = (World::with(2, config).await, Server::start([7, 0, 0]).await);
    let _offered = world.offer(1, &server, Some(Model::new(1)));
    let hello = frame(HELLO, &[0; 24]);
    let reference = |id: u8| frame(0xE0, &[&tensor("x")[..], &[0; 9], &[id; 32]].concat());
    let cases = [
        [question(), b"GET / HTTP/1.1\r\n".to_vec()].concat(),
        [question(), frame(HELLO, &[0; 65])].concat(),
        [question(), hello.clone(), reference(9)].concat(),
        [question(), hello.clone(), frame(0xE0, &[0; 336])].concat(),
        [question(), hello.clone(), frame(0xE1, &[0; 102])].concat(),
        [question(), hello.clone(), frame(0xE1, &[18; 60])].concat(),
        [question(), hello.clone(), frame(0xFE, &[])].concat(),
        [question(), hello.clone(), vec![6; 9]].concat(),
        [question(), hello.clone(), frame(18, &[b'1'; 132])].concat(),
        [question(), hello.clone(), hello].concat(),
    ];
    let remote = world.remote(1);
    for bytes in &cases {
        let opened = world.mesh[0].transport.open(&remote.scope, &remote.peer, RPC_PROTOCOL).await;
        let mut stream = opened.unwrap();
        stream.write_all(bytes).await.unwrap();
        let ended = tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut Vec::new())).await;
        assert!(ended.expect("an end").is_err(), "reset: {bytes:?}");
    }
    assert_eq!(world.tunnels[1].stats().broken, cases.len() as u64);
    assert!(server.seen.lock().unwrap().tensors.is_empty());
    let (host, _) = Host::connect(world.listen(1, None).addr()).await.unwrap();
    drop(host);
    world.end().await;
}

#[tokio::test]
async fn a_hostile_exit_is_an_error_at_the_entry() {
    let world = World::new(2).await;
    let model = Model::new(1);
    let listener = world.listen(1, Some(model));
    let accepted = b"\x00\x00\x00\x02\x00\x00".as_slice();
    let hello = [&3u64.to_le_bytes()[..], &[7, 0, 0]].concat();
    let answers = [
        // No answer, or a list that is none.
        b"\xff\xff\xff\xff".to_vec(),
        b"\x00\x00\x00\x02\x00\x01".to_vec(),
        b"\x00\x00\x00\x06\x00\x02\x01m\xff\x7f".to_vec(),
        b"\x00\x00\x00\x05\x00\x02\x01m\x02\x00\x00\x00\x01\x00".to_vec(),
        // Replies that nothing asked for, or without bound.
        [accepted, &hello, &hello].concat(),
        [accepted, &[0xff; 8]].concat(),
        [accepted, &65u64.to_le_bytes()].concat(),
        [accepted, &hello[..5]].concat(),
    ];
    for answer in answers {
        let told = answer.clone();
        let served = handler_fn(move |_: Member, mut stream: Stream| {
            let answer = told.clone();
            async move {
                let _ = stream.write_all(&answer).await;
                let _ = stream.shutdown().await;
                let _ = stream.read_to_end(&mut Vec::new()).await;
            }
        });
        world.mesh[1].transport.serve(RPC_PROTOCOL, served);
        let ended = match Host::connect(listener.addr()).await {
            Ok((mut host, _)) => host.reply().await.is_err(),
            Err(_) => true,
        };
        assert!(ended, "{answer:?}");
    }
    until("the entry says why", || async {
        listener.last_fault().is_some_and(|fault| matches!(*fault, RpcFault::Half))
    })
    .await;
    assert_eq!(listener.weights_in_common(), None);
    world.end().await;
}
