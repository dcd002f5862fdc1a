//! A cable between a host or router and its network, and what goes wrong with it.

use super::{rules, tool};

/// How a connection ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// The cable is pulled: both ends see it at once.
    Unplugged,
    /// Nothing arrives any more, and nobody is told.
    Silent,
}

/// One end of a network. A plug that is dropped stays as it is until its lab goes.
#[derive(Debug)]
pub struct Plug {
    namespace: String,
    device: &'static str,
    switch: String,
    port: String,
}

impl Plug {
    pub(super) fn new(namespace: String, device: &'static str, switch: String, port: String) -> Self {
        Self { namespace, device, switch, port }
    }

    /// The network namespace in which it ends.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Cuts it off, in both directions.
    pub fn cut(&self, cut: Cut) {
        match cut {
            // The far end goes down, so that this end keeps its addresses and routes, as with a cable.
            Cut::Unplugged => tool::ip(&self.switch, &["link", "set", &self.port, "down"]),
            Cut::Silent => self.lose(1000),
        }
    }

    /// Ends every cut and loss.
    pub fn mend(&self) {
        self.lose(0);
        tool::ip(&self.switch, &["link", "set", &self.port, "up"]);
    }

    /// Loses so many of a thousand packets, in each direction; 0 ends it.
    ///
    /// # Panics
    /// When it is more than all of them.
    pub fn lose(&self, permille: u16) {
        assert!(permille <= 1000, "no more than 1000 of a thousand packets can be lost, not {permille}");
        for (namespace, device) in self.ends() {
            tool::nft(namespace, &rules::faults(device, permille));
        }
    }

    /// Lets no more than this through, in each direction.
    pub fn limit_rate(&self, megabits_per_second: u32) {
        let rate = format!("{megabits_per_second}mbit");
        // A queue of 100 ms, as routers have; the burst is two full segmentation offloads.
        let shape = ["root", "tbf", "rate", &rate, "burst", "128k", "latency", "100ms"];
        for (namespace, device) in self.ends() {
            tool::run("tc", &[&["-n", namespace, "qdisc", "replace", "dev", device], &shape[..]].concat());
        }
    }

    fn ends(&self) -> [(&str, &str); 2] {
        [(&self.namespace, self.device), (&self.switch, &self.port)]
    }
}
