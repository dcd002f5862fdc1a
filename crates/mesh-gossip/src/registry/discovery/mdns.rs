//! Finding nodes on the local network. What it tells is a hint: who is at a place is proved by the certificate there.

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use mdns_sd::{Receiver, ResolvedService, ServiceDaemon, ServiceEvent, ServiceInfo};
use mesh_identity::NodeName;
use thiserror::Error;

use super::Place;

/// The kind of service, by RFC 6763. At most 15 characters of name.
const KIND: &str = "_qmt-agents._tcp.local.";
/// The entry of a service's text record with the name in the node's certificate.
const NAME: &str = "name";
/// How long the goodbye may take.
const GOODBYE: Duration = Duration::from_secs(2);

/// The local network could not be used. Nothing was started.
#[derive(Debug, Error)]
#[error("mDNS does not start: {0}; discovery mode \"seed\" and peers that are written down need none")]
pub struct MdnsError(mdns_sd::Error);

/// This node's announcement on the local network, and its ear for those of others.
pub struct Mdns {
    daemon: ServiceDaemon,
    events: Receiver<ServiceEvent>,
    name: NodeName,
    own: String,
}

impl fmt::Debug for Mdns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mdns").field("own", &self.own).finish_non_exhaustive()
    }
}

#[derive(Debug)]
pub(in crate::registry) enum Sighting {
    Found { instance: String, place: Place },
    Lost { instance: String },
}

impl Mdns {
    /// Announces a node at this port, at `host` when that is an address and at all of the machine's own else, and listens for others.
    /// Starts a thread that ends with [`Self::close`].
    ///
    /// # Errors
    /// [`MdnsError`] where sockets for multicast cannot be had.
    pub fn start(name: &NodeName, host: &str, port: u16) -> Result<Self, MdnsError> {
        let daemon = ServiceDaemon::new().map_err(MdnsError)?;
        match Self::announce(&daemon, name, host, port) {
            Ok((events, own)) => Ok(Self { daemon, events, name: name.clone(), own }),
            Err(error) => {
                drop(daemon.shutdown()); // it has nothing to say goodbye for
                Err(MdnsError(error))
            }
        }
    }

    fn announce(
        daemon: &ServiceDaemon,
        name: &NodeName,
        host: &str,
        port: u16,
    ) -> Result<(Receiver<ServiceEvent>, String), mdns_sd::Error> {
        let label = name.as_str().replace(['.', '_'], "-");
        let address: Option<IpAddr> = host.parse().ok().filter(|ip: &IpAddr| !ip.is_unspecified());
        let addresses = address.map(|ip| ip.to_string()).unwrap_or_default();
        let properties = [(NAME, name.as_str())];
        let machine = format!("qmt-{label}.local.");
        let mut info =
            ServiceInfo::new(KIND, name.as_str(), &machine, addresses.as_str(), port, &properties[..])?;
        if address.is_none() {
            info = info.enable_addr_auto();
        }
        let own = info.get_fullname().to_owned();
        daemon.register(info)?;
        Ok((daemon.browse(KIND)?, own))
    }

    /// The next node that comes or goes; none when the thread has ended. Cancel safe.
    pub(in crate::registry) async fn next(&mut self) -> Option<Sighting> {
        loop {
            match self.events.recv_async().await.ok()? {
                ServiceEvent::ServiceResolved(service) => {
                    if let Some(place) =
                        place(&service).filter(|place| place.name.as_ref() != Some(&self.name))
                    {
                        return Some(Sighting::Found { instance: service.fullname.clone(), place });
                    }
                }
                ServiceEvent::ServiceRemoved(_, instance) => return Some(Sighting::Lost { instance }),
                _ => {}
            }
        }
    }

    /// Says goodbye on the network and ends the thread. Blocks for two seconds at most.
    pub fn close(self) {
        if let Ok(said) = self.daemon.unregister(&self.own) {
            drop(said.recv_timeout(GOODBYE)); // others notice by the record's lifetime else
        }
        if let Ok(ended) = self.daemon.shutdown() {
            drop(ended.recv_timeout(GOODBYE));
        }
    }
}

/// Where a service is: at an IPv4 address, at one of IPv6 that needs no interface to be named else.
fn place(service: &ResolvedService) -> Option<Place> {
    let name = service.get_property_val_str(NAME)?.parse().ok()?;
    let mut addresses: Vec<IpAddr> =
        service.get_addresses().iter().map(mdns_sd::ScopedIp::to_ip_addr).collect();
    addresses.sort_unstable();
    let usable = |ip: &&IpAddr| match ip {
        IpAddr::V4(ip) => !ip.is_unspecified() && !ip.is_multicast(),
        IpAddr::V6(ip) => !ip.is_unspecified() && !ip.is_multicast() && !ip.is_unicast_link_local(),
    };
    let local = |ip: &&IpAddr| ip.is_loopback();
    // A node that shares this machine is also reached at its other addresses, and another machine only there.
    let best = addresses.iter().filter(usable).find(|ip| !local(ip));
    let address = best.or_else(|| addresses.iter().find(usable))?;
    Some(Place { name: Some(name), host: address.to_string(), port: service.get_port() })
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;

    /// Only against hanging for ever.
    const PATIENCE: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn nodes_of_one_network_hear_each_other_come_and_go() {
        let name = |of: &str| of.parse::<NodeName>().expect("a name");
        // Names that no other run on this network has.
        let run: u32 = rand::random();
        let (one, two) = (name(&format!("one-{run:x}")), name(&format!("two.{run:x}")));
        let mut here = Mdns::start(&one, "127.0.0.1", 3001).expect("starts");
        let there = Mdns::start(&two, "0.0.0.0", 3002).expect("starts");
        let found = timeout(PATIENCE, async {
            loop {
                if let Sighting::Found { instance, place } = here.next().await.expect("runs")
                    && place.name.as_ref() == Some(&two)
                {
                    return (instance, place);
                }
            }
        });
        let (found, place) = found.await.expect("it is heard");
        assert_eq!(place.port, 3002);
        tokio::task::spawn_blocking(move || there.close()).await.expect("closes");
        let lost = async {
            while !matches!(here.next().await.expect("runs"), Sighting::Lost { instance } if instance == found)
            {
            }
        };
        timeout(PATIENCE, lost).await.expect("its goodbye is heard");
        tokio::task::spawn_blocking(move || here.close()).await.expect("closes");
    }
}
