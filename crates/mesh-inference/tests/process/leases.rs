//! Leases with real processes: a stand-in for rpc-server behind a real guard, nodes linked in memory.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use mesh_identity::Permissions;
use mesh_inference::instance::{ProcessId, RpcLaunch, RpcServer};
use mesh_inference::lease::{Ask, Lease, LeaseConfig, LeaseError, Lender, LenderConfig, RefusalCode};
use mesh_inference::memory::Ledger;
use mesh_transport::memory::Network;
use mesh_transport::testing::{Mesh, TestNode};
use mesh_transport::write_message;
use mesh_tunnel::Tunnels;
use rustix::process::{Pid, Signal, kill_process};

use crate::restarts::{gone, guard, run};

const CAP: u64 = 1 << 20;

/// Node 0 lends, the others borrow.
struct World {
    mesh: Mesh,
    network: Network,
    lender: Lender,
    ledger: Ledger,
    _tunnels: Tunnels,
    home: tempfile::TempDir,
}

fn times() -> LeaseConfig {
    LeaseConfig {
        beat_every: Duration::from_millis(50),
        silence_max: Duration::from_secs(1),
        ..LeaseConfig::default()
    }
}

fn rpc_program(home: &Path) -> PathBuf {
    let script = home.join("ggml-rpc-server");
    let own = std::env::current_exe().unwrap();
    std::fs::write(&script, format!("#!/bin/sh\nexec '{}' __rpc \"$@\"\n", own.display())).unwrap();
    std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    script
}

impl World {
    async fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        let network = Network::new(0);
        let mesh = Mesh::on(network.clone(), 3).await;
        let tunnels = Tunnels::start(mesh[0].transport.clone(), mesh_tunnel::Config::default());
        let ledger = Ledger::new(Some(CAP));
        let config = LenderConfig {
            rpc_server: Some(rpc_program(home.path())),
            build: "b11434".into(),
            home: home.path().to_owned(),
            guard: guard(),
            devices: Vec::new(),
            threads: None,
            leases_max: 4,
            weights: Arc::new(|_| Box::pin(std::future::ready(None))),
            times: times(),
        };
        let lender = Lender::start(&mesh[0].transport, tunnels.clone(), ledger.clone(), config);
        Self { mesh, network, lender, ledger, _tunnels: tunnels, home }
    }

    async fn borrow(&self, host: usize, ask: Ask) -> Result<Lease, LeaseError> {
        self.borrow_by(&self.mesh[host], ask).await
    }

    async fn borrow_by(&self, host: &TestNode, ask: Ask) -> Result<Lease, LeaseError> {
        Lease::ask(&host.transport, self.mesh.scope(), self.mesh[0].id(), ask, &times()).await
    }

    /// The rpc-server of the only lease, by what its guard has written down.
    fn server(&self) -> ProcessId {
        let records: Vec<_> =
            std::fs::read_dir(self.home.path().join("run/children")).unwrap().flatten().collect();
        let [record] = &records[..] else { panic!("{} children", records.len()) };
        let record: serde_json::Value =
            serde_json::from_slice(&std::fs::read(record.path()).unwrap()).unwrap();
        let child: ProcessId = serde_json::from_value(record["child"].clone()).unwrap();
        assert!(child.is_alive());
        child
    }

    /// Waits until nothing is lent and no memory is held.
    async fn until_free(&self) {
        let mut changes = self.lender.watch();
        while !self.lender.lent().is_empty() || self.ledger.held() > 0 {
            let _ = tokio::time::timeout(Duration::from_millis(50), changes.changed()).await;
        }
    }

    async fn shutdown(self) {
        self.lender.shutdown().await;
        self.mesh.shutdown().await;
    }
}

fn ask(epoch: u64) -> Ask {
    Ask { model: "tiny".into(), epoch, bytes: CAP / 2, build: "b11434".into(), workers: Vec::new() }
}

pub(crate) fn a_lease_lends_and_gives_back() {
    run(async {
        let world = World::new().await;
        let lease = world.borrow(1, ask(1)).await.unwrap();
        let server = world.server();
        assert!(server.is_alive());
        assert_eq!(world.ledger.held(), CAP / 2);
        let lent = world.lender.lent();
        assert_eq!((lent.len(), lent[0].host, lent[0].epoch), (1, world.mesh[1].id(), 1));
        tokio::time::sleep(times().silence_max * 2).await;
        assert_eq!(lease.is_lost(), None, "it lasts while both live");
        drop(lease);
        gone(&server).await;
        world.until_free().await;
        world.shutdown().await;
    });
}

pub(crate) fn of_two_hosts_the_higher_epoch_has_it() {
    run(async {
        let world = World::new().await;
        let first = world.borrow(1, ask(5)).await.unwrap();
        let server = world.server();
        for epoch in [4, 5] {
            let Err(LeaseError::Refused { code, holder, .. }) = world.borrow(2, ask(epoch)).await else {
                panic!("lent twice")
            };
            assert_eq!((code, holder), (RefusalCode::Held, Some((world.mesh[1].id(), 5))));
        }
        let second = world.borrow(2, ask(6)).await.unwrap();
        assert!(!server.is_alive(), "the first host's memory is free before the second has it");
        assert_eq!(first.lost().await, "the worker has taken it back");
        assert_eq!(world.ledger.held(), CAP / 2);
        let server = world.server();
        world.lender.shutdown().await;
        assert!(!server.is_alive());
        second.lost().await;
        world.shutdown().await;
    });
}

pub(crate) fn refusals_say_why() {
    run(async {
        let mut world = World::new().await;
        let refusal = |result: Result<Lease, LeaseError>| match result {
            Err(LeaseError::Refused { code, text, .. }) => (code, text),
            other => panic!("{other:?}"),
        };
        let (code, text) = refusal(world.borrow(1, Ask { build: "b9999".into(), ..ask(1) }).await);
        assert_eq!(code, RefusalCode::OtherBuild);
        assert!(text.contains("b11434") && text.contains("b9999"), "{text}");
        let (code, text) = refusal(world.borrow(1, Ask { bytes: CAP + 1, ..ask(1) }).await);
        assert_eq!(code, RefusalCode::Memory);
        assert!(text.contains(&CAP.to_string()), "{text}");
        let (code, _) = refusal(world.borrow(1, Ask { model: "x".repeat(600), ..ask(1) }).await);
        assert_eq!(code, RefusalCode::Malformed);
        let first = world.borrow(1, ask(1)).await.unwrap();
        let other = Ask { model: "other".into(), bytes: CAP / 2 + 1, ..ask(1) };
        let (code, text) = refusal(world.borrow(2, other).await);
        assert_eq!(code, RefusalCode::Memory, "two hosts are never promised the same bytes");
        assert!(text.contains("tiny"), "{text}");
        drop(first);
        let client = Permissions::CLIENT;
        world.mesh.add(client).await;
        let client = &world.mesh.nodes()[3];
        let (code, _) = refusal(world.borrow_by(client, ask(1)).await);
        assert_eq!(code, RefusalCode::NotLending, "clients borrow nothing");
        world.until_free().await;
        world.shutdown().await;
    });
}

pub(crate) fn a_killed_rpc_server_ends_its_lease() {
    run(async {
        let world = World::new().await;
        let lease = world.borrow(1, ask(1)).await.unwrap();
        let server = world.server();
        kill_process(Pid::from_raw(server.pid).unwrap(), Signal::KILL).unwrap();
        let why = lease.lost().await;
        assert!(why.contains("rpc-server is gone") && why.contains("killed"), "{why}");
        world.until_free().await;
        world.shutdown().await;
    });
}

pub(crate) fn a_halted_rpc_server_ends_its_lease() {
    run(async {
        let world = World::new().await;
        let lease = world.borrow(1, ask(1)).await.unwrap();
        let server = world.server();
        kill_process(Pid::from_raw(server.pid).unwrap(), Signal::STOP).unwrap();
        let why = lease.lost().await;
        assert!(why.contains("halted"), "{why}");
        gone(&server).await;
        world.until_free().await;
        world.shutdown().await;
    });
}

pub(crate) fn a_lost_link_ends_the_lease_on_both_sides() {
    run(async {
        let world = World::new().await;
        let lease = world.borrow(1, ask(1)).await.unwrap();
        let server = world.server();
        world.network.cut(world.mesh[0].id(), world.mesh[1].id());
        lease.lost().await;
        gone(&server).await;
        world.until_free().await;
        world.shutdown().await;
    });
}

pub(crate) fn a_host_that_falls_silent_loses_its_lease() {
    run(async {
        let world = World::new().await;
        // The question by hand, and no beat after it.
        let host = &world.mesh[1];
        let stream = host
            .transport
            .open(&world.mesh.scope(), &world.mesh[0].id(), mesh_inference::lease::PROTOCOL)
            .await
            .unwrap();
        let (mut send, _recv) = stream.split();
        // The first message of `lease/1`, as docs/protocols/lease.md writes it: variant 0, then the question.
        write_message(&mut send, &(0u8, ask(1)), 8192).await.unwrap();
        let mut changes = world.lender.watch();
        changes.wait_for(|count| *count > 0).await.unwrap();
        world.until_free().await;
        drop(send);
        world.shutdown().await;
    });
}

/// The first start finds its port taken: by this test, between the choice and the bind.
pub(crate) fn a_stolen_port_of_an_rpc_server_is_passed_over() {
    let home = tempfile::tempdir().unwrap();
    let (script, own) = (home.path().join("rpc-server"), std::env::current_exe().unwrap());
    let body = format!(
        "#!/bin/sh\ncd '{}'\nif mkdir first 2>/dev/null; then\n\
         while [ \"$1\" != -p ]; do shift; done\necho \"$2\" > port.new && mv port.new port\n\
         while [ ! -e taken ]; do sleep 0.02; done\nexit 1\nfi\nexec '{}' __rpc \"$@\"\n",
        home.path().display(),
        own.display()
    );
    std::fs::write(&script, body).unwrap();
    std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    run(async {
        let launch = RpcLaunch::new(script, "rpc", home.path().to_owned(), guard());
        let steals = async {
            let port = loop {
                match std::fs::read_to_string(home.path().join("port")) {
                    Ok(port) => break port.trim().parse::<u16>().unwrap(),
                    Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
                }
            };
            let thief = std::net::TcpListener::bind(("127.0.0.1", port)).unwrap();
            std::fs::write(home.path().join("taken"), "").unwrap();
            thief
        };
        let (server, thief) = tokio::join!(RpcServer::start(launch), steals);
        let server = server.unwrap();
        assert_ne!(server.addr(), thief.local_addr().unwrap());
        assert!(server.process().is_alive());
        #[cfg(target_os = "linux")]
        if std::env::var_os("GLIBC_TUNABLES").is_none() {
            let environment = std::fs::read(format!("/proc/{}/environ", server.process().pid)).unwrap();
            let asks = |variable: &[u8]| variable == b"GLIBC_TUNABLES=glibc.malloc.hugetlb=1";
            assert!(environment.split(|byte| *byte == 0).any(asks), "weights lie in huge pages");
        }
        server.stop().await;
    });
}
