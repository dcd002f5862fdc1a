//! The contract, at every site.

mod memory {
    use std::{sync::Arc, time::Duration};

    use mesh_transport::{
        memory::{Conditions, Network},
        testing::Site,
    };

    async fn site() -> Arc<dyn Site> {
        let network = Network::new(7);
        let (latency, jitter) = (Duration::from_millis(1), Duration::from_millis(1));
        network.set_conditions(Conditions { latency, jitter, loss: 0.01, ..Conditions::default() });
        Arc::new(network)
    }

    mesh_transport::contract_suite!(site());
}

mod direct {
    use std::sync::Arc;

    use mesh_transport::testing::Site;

    async fn site() -> Arc<dyn Site> {
        Arc::new(crate::sites::Loopback)
    }

    mesh_transport::contract_suite!(site());
}

mod relay_only {
    mesh_transport::contract_suite!(crate::sites::RelayOnly::start());
}

mod lan_tcp {
    use std::sync::Arc;

    use mesh_transport::testing::Site;

    async fn site() -> Arc<dyn Site> {
        Arc::new(crate::sites::LanLoopback::Tcp)
    }

    mesh_transport::contract_suite!(site());
}

mod lan_quic {
    use std::sync::Arc;

    use mesh_transport::testing::Site;

    async fn site() -> Arc<dyn Site> {
        Arc::new(crate::sites::LanLoopback::Quic)
    }

    mesh_transport::contract_suite!(site());
}
