//! Whether the names of the configuration lead anywhere.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use futures_util::future::join_all;
use mesh_control::Finding;
use multiaddr::Protocol;

use super::{fail, ok};
use crate::config::{Config, Relays};

/// A resolver of this machine answers at once, one that is not there after its own 5 s; all names are asked at once.
const DEADLINE: Duration = Duration::from_secs(8);

/// Resolves each; nothing to say where no name is configured.
pub(super) async fn check_names(config: &Config) -> Vec<Finding> {
    let asked = configured(config).into_iter().map(|(name, key)| async move {
        let answer = tokio::time::timeout(DEADLINE, tokio::net::lookup_host((name.clone(), 0))).await;
        let why = match answer {
            Ok(Ok(mut addrs)) => addrs.next().is_none().then(|| "it has no address".to_owned()),
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => Some(format!("no answer within {} s", DEADLINE.as_secs())),
        };
        (name, key, why)
    });
    judge(join_all(asked).await)
}

/// A name, the key it stands under, and why it leads nowhere if it does not.
fn judge(asked: Vec<(String, &'static str, Option<String>)>) -> Vec<Finding> {
    let good: Vec<&str> =
        asked.iter().filter(|(.., why)| why.is_none()).map(|(name, ..)| name.as_str()).collect();
    let good = (!good.is_empty()).then(|| ok("dns", format!("resolves {}", good.join(", "))));
    let bad = asked.iter().filter_map(|(name, key, why)| {
        Some(fail(
            "dns",
            format!("{name} ({key}) cannot be resolved: {}", why.as_ref()?),
            format!("`getent hosts {name}`; correct {key}, or the name servers in /etc/resolv.conf"),
        ))
    });
    good.into_iter().chain(bad).collect()
}

/// Names that are no addresses, each with the key that it stands under.
fn configured(config: &Config) -> BTreeMap<String, &'static str> {
    let mut found = BTreeMap::new();
    let mut add = |name: Option<&str>, key| {
        let name = name.map(|name| name.trim_matches(['[', ']'])).filter(|name| !name.is_empty());
        if let Some(name) = name.filter(|name| name.parse::<IpAddr>().is_err()) {
            found.entry(name.to_owned()).or_insert(key);
        }
    };
    let relays = |relays: &Relays| -> Vec<String> {
        match relays {
            Relays::Custom(urls) => urls.iter().filter_map(|url| host(url)).collect(),
            _ => Vec::new(),
        }
    };
    let of_scopes = config.mesh.scopes.iter().filter_map(|scope| scope.relays.as_ref());
    for relays in of_scopes.chain([&config.mesh.internet.relays]).map(relays) {
        relays.iter().for_each(|name| add(Some(name), "relay_urls"));
    }
    for peer in config.mesh.peers.iter().filter_map(|peer| peer.addr.as_ref()) {
        for part in peer {
            if let Protocol::Dns(name) | Protocol::Dns4(name) | Protocol::Dns6(name) = part {
                add(Some(&name), "[[mesh.peers]]");
            }
        }
    }
    for provider in &config.providers {
        add(provider.base_url.host(), "[[providers]] base_url");
    }
    add(config.hub.endpoint.as_deref().and_then(host).as_deref(), "HF_ENDPOINT");
    for peer in config.agent_channel.iter().flat_map(|channel| &channel.peers) {
        add(Some(&peer.host), "[[agent_channel.peers]]");
    }
    found
}

fn host(url: &str) -> Option<String> {
    url.parse::<http::Uri>().ok()?.host().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use mesh_control::Verdict;

    use super::*;

    #[test]
    fn names_are_found_and_addresses_left_out() {
        let mut config = Config::at("/x");
        config.mesh.internet.relays = Relays::Custom(vec![
            "https://relay.invalid:443".into(),
            "http://127.0.0.1:1".into(),
            "https://[::1]".into(),
        ]);
        config.hub.endpoint = Some("https://hub.invalid".into());
        let found = configured(&config);
        assert_eq!(
            found,
            BTreeMap::from([("relay.invalid".into(), "relay_urls"), ("hub.invalid".into(), "HF_ENDPOINT")])
        );
    }

    #[test]
    fn a_name_that_leads_nowhere_stands_with_its_key() {
        let asked = vec![
            ("a".to_owned(), "relay_urls", None),
            ("b".to_owned(), "relay_urls", Some("none".to_owned())),
        ];
        let findings = judge(asked);
        let verdicts: Vec<Verdict> = findings.iter().map(|finding| finding.verdict).collect();
        assert_eq!(verdicts, [Verdict::Ok, Verdict::Fail]);
        assert!(findings[1].detail.contains("b (relay_urls)"), "{findings:?}");
    }
}
