//! How well it goes: four measures, each healthy, worth a look or critical.
//!
//! | measure | healthy | warning | critical |
//! |---|---|---|---|
//! | streams that had to be taken up again | below 1 % | 1 to 5 % | above 5 % |
//! | average round trip of the links | below 100 ms | 100 to 500 ms | above 500 ms |
//! | providers of models that are available | above 99 % | 95 to 99 % | below 95 % |
//! | requests that failed | below 0.1 % | 0.1 to 1 % | above 1 % |

use mesh_control::{Grade, HealthView, ModelState};
use mesh_inference::gateway::GatewayStats;

use super::Node;

impl Node {
    pub(crate) fn health(&self) -> Vec<HealthView> {
        let gateway = self.inner.gateway.stats();
        let links = self.transport().links();
        let rtts: Vec<f64> =
            links.iter().filter_map(|link| link.path.rtt).map(|rtt| rtt.as_secs_f64() * 1e3).collect();
        let states: Vec<ModelState> =
            self.models().iter().flat_map(|model| model.providers.iter()).map(|one| one.state).collect();
        vec![reconnections(&gateway), latency(&rtts), providers(&states), errors(&gateway)]
    }
}

fn reconnections(gateway: &GatewayStats) -> HealthView {
    let taken_up = gateway.continued_total + gateway.resumed_total;
    measured("reconnections", share(taken_up, gateway.requests_total), |value| below(value, 0.01, 0.05))
}

fn latency(rtts_ms: &[f64]) -> HealthView {
    let mut sum = (0.0, 0.0);
    rtts_ms.iter().for_each(|rtt| sum = (sum.0 + rtt, sum.1 + 1.0));
    let average = (sum.1 > 0.0).then(|| sum.0 / sum.1);
    HealthView {
        name: "latency".to_owned(),
        grade: average.map_or(Grade::Healthy, |value| below(value, 100.0, 500.0)),
        text: average.map_or_else(|| "no link open".to_owned(), |value| format!("{value:.1} ms on average")),
        value: average,
    }
}

/// What was stopped by a person is not missing.
fn providers(states: &[ModelState]) -> HealthView {
    let wanted = states.iter().filter(|state| !matches!(state, ModelState::Stopped | ModelState::Cold));
    let (mut all, mut there) = (0, 0);
    for state in wanted {
        all += 1;
        there += u64::from(matches!(state, ModelState::Ready | ModelState::Loading));
    }
    measured("providers", share(there, all), |value| {
        if value > 0.99 {
            Grade::Healthy
        } else if value >= 0.95 {
            Grade::Warning
        } else {
            Grade::Critical
        }
    })
}

fn errors(gateway: &GatewayStats) -> HealthView {
    let failed = gateway.refused_total + gateway.lost_total;
    measured("errors", share(failed, gateway.requests_total), |value| below(value, 0.001, 0.01))
}

fn measured(name: &str, value: Option<f64>, grade: impl Fn(f64) -> Grade) -> HealthView {
    HealthView {
        name: name.to_owned(),
        grade: value.map_or(Grade::Healthy, grade),
        text: value.map_or_else(|| "nothing yet".to_owned(), |value| format!("{:.1} %", value * 100.0)),
        value,
    }
}

#[expect(clippy::cast_precision_loss, reason = "a share of counts does not need their last digits")]
fn share(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| part as f64 / whole as f64)
}

fn below(value: f64, warning: f64, critical: f64) -> Grade {
    if value < warning {
        Grade::Healthy
    } else if value <= critical {
        Grade::Warning
    } else {
        Grade::Critical
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grades_follow_the_table() {
        let counts = |requests_total, continued_total, refused_total| GatewayStats {
            requests_total,
            continued_total,
            refused_total,
            ..GatewayStats::default()
        };
        let grade = |continued| reconnections(&counts(1000, continued, 0)).grade;
        assert_eq!(
            [grade(9), grade(10), grade(50), grade(51)],
            [Grade::Healthy, Grade::Warning, Grade::Warning, Grade::Critical]
        );
        let grade = |refused| errors(&counts(10_000, 0, refused)).grade;
        assert_eq!(
            [grade(9), grade(10), grade(100), grade(101)],
            [Grade::Healthy, Grade::Warning, Grade::Warning, Grade::Critical]
        );
        let grade = |rtt| latency(&[rtt, rtt]).grade;
        assert_eq!(
            [grade(99.9), grade(100.0), grade(500.0), grade(500.1)],
            [Grade::Healthy, Grade::Warning, Grade::Warning, Grade::Critical]
        );
        let grade = |failed: usize| {
            let states: Vec<ModelState> =
                (0..200).map(|at| if at < failed { ModelState::Failed } else { ModelState::Ready }).collect();
            providers(&states).grade
        };
        assert_eq!(
            [grade(0), grade(1), grade(2), grade(10), grade(11)],
            [Grade::Healthy, Grade::Healthy, Grade::Warning, Grade::Warning, Grade::Critical]
        );
    }

    #[test]
    fn nothing_measured_is_nothing_wrong() {
        let idle = GatewayStats::default();
        for view in [reconnections(&idle), latency(&[]), providers(&[ModelState::Stopped]), errors(&idle)] {
            assert_eq!((view.grade, view.value), (Grade::Healthy, None), "{}", view.name);
        }
    }
}
