//! What is counted of the agent channel.

use mesh_identity::UnixTime;
use mesh_sessions::channel::{Code, Ending, Refusal, Stats};

use super::super::Node;
use super::super::metrics::{Facts, Family, Kind, Sample, families, of};

/// The channel's counters of one moment; all at rest where there is none.
#[derive(Debug)]
pub(in super::super) struct Counted {
    stats: Stats,
    /// Connections that this node made.
    made: usize,
    /// Until its certificate ends; not a number without one.
    certificate_secs: f64,
}

impl Node {
    pub(in super::super) fn channel_counted(&self) -> Counted {
        let Some(running) = self.channel() else {
            return Counted { stats: Stats::default(), made: 0, certificate_secs: f64::NAN };
        };
        let (until, now) = (running.tls.leaf().not_after.0, UnixTime::now().0);
        Counted {
            stats: running.server.stats(),
            made: running.tls.connections().1,
            certificate_secs: of(until.saturating_sub(now)) - of(now.saturating_sub(until)),
        }
    }
}

fn refused(f: &Facts, code: Code) -> f64 {
    of(f.channel.stats.refused(code))
}

fn not_shaken(f: &Facts, why: Refusal) -> f64 {
    of(f.channel.stats.handshakes_refused(why))
}

fn ended(f: &Facts, how: Ending) -> f64 {
    of(f.channel.stats.delegations_ended(how))
}

families! {
    Gauge "mesh_channel_certificate_seconds", "Until the certificate that the agent channel shows ends, below 0 after that; NaN without a certificate.": "" => |f| f.channel.certificate_secs;
    Gauge "mesh_channel_connections", "Connections of the agent channel open now, by who made them.":
        "by=\"others\"" => |f| of(f.channel.stats.connections as u64),
        "by=\"this_node\"" => |f| of(f.channel.made as u64);
    Counter "mesh_channel_connections_cut_total", "Connections of others that were closed since their certificates were accepted no more.": "" => |f| of(f.channel.stats.cut);
    Counter "mesh_channel_handshakes_total", "Handshakes of callers that ended well.": "" => |f| of(f.channel.stats.handshakes);
    Counter "mesh_channel_handshakes_refused_total", "Handshakes of callers that did not, by why.":
        "reason=\"no_certificate\"" => |f| not_shaken(f, Refusal::NoCertificate),
        "reason=\"another_ca\"" => |f| not_shaken(f, Refusal::AnotherCa),
        "reason=\"expired\"" => |f| not_shaken(f, Refusal::Expired),
        "reason=\"not_yet_valid\"" => |f| not_shaken(f, Refusal::NotYetValid),
        "reason=\"revoked\"" => |f| not_shaken(f, Refusal::Revoked),
        "reason=\"wrong_purpose\"" => |f| not_shaken(f, Refusal::WrongPurpose),
        "reason=\"bad_certificate\"" => |f| not_shaken(f, Refusal::BadCertificate),
        "reason=\"protocol\"" => |f| not_shaken(f, Refusal::Protocol),
        "reason=\"plaintext\"" => |f| not_shaken(f, Refusal::Plaintext),
        "reason=\"by_peer\"" => |f| not_shaken(f, Refusal::ByPeer),
        "reason=\"broken\"" => |f| not_shaken(f, Refusal::Broken),
        "reason=\"busy\"" => |f| not_shaken(f, Refusal::Busy),
        "reason=\"other\"" => |f| not_shaken(f, Refusal::Other);
    Counter "mesh_channel_requests_total", "Requests that were accepted.": "" => |f| of(f.channel.stats.accepted);
    Counter "mesh_channel_refused_total", "Requests answered with an error, by its code.":
        "code=\"bad_request\"" => |f| refused(f, Code::BadRequest),
        "code=\"not_you\"" => |f| refused(f, Code::NotYou),
        "code=\"not_registered\"" => |f| refused(f, Code::NotRegistered),
        "code=\"not_allowed\"" => |f| refused(f, Code::NotAllowed),
        "code=\"unknown_agent\"" => |f| refused(f, Code::UnknownAgent),
        "code=\"not_found\"" => |f| refused(f, Code::NotFound),
        "code=\"method_not_allowed\"" => |f| refused(f, Code::MethodNotAllowed),
        "code=\"conflict\"" => |f| refused(f, Code::Conflict),
        "code=\"too_large\"" => |f| refused(f, Code::TooLarge),
        "code=\"too_slow\"" => |f| refused(f, Code::TooSlow),
        "code=\"loop\"" => |f| refused(f, Code::Loop),
        "code=\"busy\"" => |f| refused(f, Code::Busy),
        "code=\"agent_failed\"" => |f| refused(f, Code::AgentFailed),
        "code=\"timed_out\"" => |f| refused(f, Code::TimedOut),
        "code=\"unavailable\"" => |f| refused(f, Code::Unavailable),
        "code=\"internal\"" => |f| refused(f, Code::Internal);
    Gauge "mesh_channel_delegations", "Delegations of callers under way now.": "" => |f| of(f.channel.stats.delegations as u64);
    Counter "mesh_channel_delegations_total", "Delegations of callers that are over, by how they ended.":
        "outcome=\"done\"" => |f| ended(f, Ending::Done),
        "outcome=\"failed\"" => |f| ended(f, Ending::Failed),
        "outcome=\"timed_out\"" => |f| ended(f, Ending::TimedOut),
        "outcome=\"cancelled\"" => |f| ended(f, Ending::Cancelled);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_a_line() {
        let lines = |name: &str| {
            let family = FAMILIES.iter().find(|family| family.name == name);
            family.map_or(0, |family| family.samples.len())
        };
        assert_eq!(lines("mesh_channel_handshakes_refused_total"), Refusal::ALL.len());
        assert_eq!(lines("mesh_channel_refused_total"), Code::ALL.len());
        assert_eq!(lines("mesh_channel_delegations_total"), Ending::ALL.len());
    }
}
