//! After the heal everything works again, and soon: every probe succeeds, and no caller waits for
//! an answer for ever.
//!
//! It cannot see how long callers waited while faults were active, nor cubes that nobody probed.

use super::{case::Case, findings::Findings};
use crate::evidence::Violation;

pub(super) const NAME: &str = "liveness";

/// Simulated milliseconds within which a healed cluster serves everything, retries included: the
/// time to find a node dead, to claim its cubes and to read them, and some.
pub(super) const LIVENESS_MS_MAX: u64 = 20_000;

/// Looks at every probe and every operation.
pub(super) fn check(case: &Case<'_>) -> Vec<Violation> {
    let mut findings = Findings::of(NAME);
    for probe in &case.evidence.probes {
        let (tenant, cube, what) = (&probe.tenant, &probe.cube, &probe.what);
        match probe.took_ms {
            Some(took) if took <= LIVENESS_MS_MAX => {}
            Some(took) => findings.report(format!(
                "{tenant}/{cube}: {what} took {took} ms after the heal, at most \
                 {LIVENESS_MS_MAX} ms are good"
            )),
            None => {
                let error = probe.error.as_deref().unwrap_or("no error was told");
                findings.report(format!(
                    "{tenant}/{cube}: {what} never worked after the heal, last: {error}"
                ));
            }
        }
    }
    for operation in case.evidence.history.operations() {
        findings.expect(operation.returned.is_some(), || {
            let (id, at_ms) = (operation.id, operation.invoked.ms);
            let (tenant, cube) = (&operation.tenant, &operation.cube);
            format!("{tenant}/{cube}: operation {id}, asked at {at_ms} ms, was never answered")
        });
    }
    findings.into_violations()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        checkers::builder::{Scene, said},
        evidence::Probe,
        history::{Call, Outcome},
    };

    fn check_probe(took_ms: Option<u64>, error: Option<&str>) -> Vec<String> {
        let mut scene = Scene::new();
        let (tenant, cube) = scene.cube.clone();
        scene.add(0, "mk1");
        let mut evidence = scene.finish();
        let (what, error) = ("list".to_owned(), error.map(str::to_owned));
        evidence.probes.push(Probe { tenant, cube, what, took_ms, error });
        said(&check(&Case::read(&evidence)))
    }

    #[test]
    fn every_probe_works_in_time() {
        assert!(check_probe(Some(LIVENESS_MS_MAX), Some("slow at first")).is_empty());
        assert_eq!(
            check_probe(Some(20_001), None),
            ["acme/ann: list took 20001 ms after the heal, at most 20000 ms are good"]
        );
        assert_eq!(
            check_probe(None, Some("unavailable")),
            ["acme/ann: list never worked after the heal, last: unavailable"]
        );
    }

    #[test]
    fn every_operation_is_answered() {
        let mut scene = Scene::new();
        scene.hang(0, Call::List);
        let lost = scene.add(0, "mk1");
        scene.operation(1, Call::Get { id: lost }, Outcome::Unknown { reason: "cut".to_owned() });
        assert_eq!(
            said(&check(&Case::read(&scene.finish()))),
            ["acme/ann: operation 0, asked at 10 ms, was never answered"]
        );
    }
}
