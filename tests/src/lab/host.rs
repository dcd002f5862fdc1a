//! Hosts and the processes in them.

use std::fs::File;
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Output};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::plan::Subnet;
use super::{Lan, Plug, tool};

/// A machine on one network.
#[derive(Debug)]
pub struct Host {
    lan: Lan,
    plug: Plug,
    address: Ipv4Addr,
}

impl Host {
    pub(super) fn new(lan: Lan, plug: Plug, address: Ipv4Addr) -> Self {
        Self { lan, plug, address }
    }

    pub(super) fn lan(&self) -> Lan {
        self.lan
    }

    pub(super) fn set_address(&mut self, address: Ipv4Addr) {
        self.address = address;
    }

    pub(super) fn configure(&self, subnet: &Subnet) {
        let namespace = self.plug.namespace();
        tool::ip(namespace, &["addr", "add", &subnet.with_length(self.address), "dev", "eth0"]);
        tool::ip(namespace, &["route", "add", "default", "via", &subnet.gateway().to_string()]);
    }

    /// Its address.
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// Its cable.
    pub fn plug(&self) -> &Plug {
        &self.plug
    }

    /// Takes its interface down or up, as its owner may: it keeps its address, and gets its default route anew.
    pub fn set_up(&self, is_up: bool) {
        let namespace = self.plug.namespace();
        tool::ip(namespace, &["link", "set", "eth0", if is_up { "up" } else { "down" }]);
        if is_up {
            let gateway = self.lan.subnet.gateway().to_string();
            tool::ip(namespace, &["route", "replace", "default", "via", &gateway]);
        }
    }

    /// A command that will run in this host. Files and Unix sockets are those of the machine.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", self.plug.namespace()]).arg(program);
        command
    }

    /// Runs a command in this host to its end.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn run(&self, program: &str, arguments: &[&str]) -> Output {
        let output = self.command(program).args(arguments).output();
        output.unwrap_or_else(|error| panic!("cannot run ip, which starts {program} in a host: {error}"))
    }

    /// Runs code of this process in this host, in a thread of its own: sockets that it opens stay in the host, wherever
    /// they are used then.
    ///
    /// # Panics
    /// When the code does, or the host cannot be entered.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let namespace = self.plug.namespace();
        let work = || {
            enter(namespace).unwrap_or_else(|error| panic!("cannot enter {namespace}: {error}"));
            work()
        };
        match std::thread::scope(|scope| scope.spawn(work).join()) {
            Ok(done) => done,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}

/// Moves the calling thread into a namespace.
fn enter(namespace: &str) -> std::io::Result<()> {
    let link = File::open(Path::new("/run/netns").join(namespace))?;
    move_into_link_name_space(link.as_fd(), Some(LinkNameSpaceType::Network))?;
    Ok(())
}

/// A running process; killed when dropped.
#[derive(Debug)]
pub struct Process(Child);

impl Process {
    /// Starts a command.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn start(command: &mut Command) -> Self {
        let child = command.spawn();
        Self(child.unwrap_or_else(|error| panic!("cannot start {command:?}: {error}")))
    }

    /// Its id: `ip netns exec` becomes the program that it starts.
    pub fn id(&self) -> u32 {
        self.0.id()
    }

    /// Ends it at once, and waits until it has ended.
    pub fn kill(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }

    /// How it ended, if it did.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.0.try_wait().ok().flatten()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}
