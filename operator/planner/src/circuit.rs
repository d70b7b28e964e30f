//! A circuit before a dependency: a server that does not answer is left alone for a while, so that those who ask it in vain take
//! nothing from others. The clock is handed in.

use std::time::{Duration, Instant};

/// So many failures in a row open a circuit. Fewer are a server that restarts.
pub const FAILURES: u32 = 3;
/// How long a circuit stays open the first time; twice as long after each probe that fails.
pub const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The longest a circuit stays open: so long after it is back, a server is asked again.
pub const LONGEST_PAUSE: Duration = Duration::from_secs(15);

/// Whether a dependency is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// It is.
    Go,
    /// It is, by this caller alone: everybody else waits for what comes of it.
    Probe,
    /// Not before so long.
    Refused(Duration),
}

/// What is known of a dependency.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Circuit {
    /// Failures in a row.
    failures: u32,
    state: State,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Closed,
    /// Nobody asks until then.
    Open(Instant),
    /// One asks, and has until then to say what came of it.
    HalfOpen(Instant),
}

impl Circuit {
    /// Whether to ask now. A probe that says nothing within `limit` was given up, and another one may be made.
    pub fn admit(&mut self, now: Instant, limit: Duration) -> Admission {
        match self.state {
            State::Closed => Admission::Go,
            State::Open(until) | State::HalfOpen(until) if now < until => {
                Admission::Refused(until - now)
            }
            State::Open(_) | State::HalfOpen(_) => {
                self.state = State::HalfOpen(now + limit);
                Admission::Probe
            }
        }
    }

    /// For how long nobody is to ask, if that is so; nothing comes of having looked.
    #[must_use]
    pub fn refuses(&self, now: Instant) -> Option<Duration> {
        match self.state {
            State::Open(until) | State::HalfOpen(until) => until
                .checked_duration_since(now)
                .filter(|left| !left.is_zero()),
            State::Closed => None,
        }
    }

    /// The dependency answered, be it that it refuses.
    pub fn answered(&mut self) {
        *self = Circuit::default();
    }

    /// The dependency did not answer. `spread`, from 0 to 1, keeps many circuits that opened together from ending together.
    pub fn failed(&mut self, now: Instant, spread: f64) {
        self.failures = self.failures.saturating_add(1);
        if self.failures < FAILURES {
            return;
        }
        let pauses = FIRST_PAUSE.saturating_mul(1 << (self.failures - FAILURES).min(10));
        let pause = pauses.min(LONGEST_PAUSE);
        self.state = State::Open(now + pause.mul_f64(0.75 + 0.25 * spread.clamp(0.0, 1.0)));
    }

    /// Whether it is known to answer nobody at the moment.
    #[must_use]
    pub const fn is_open(&self) -> bool {
        !matches!(self.state, State::Closed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(30);

    #[test]
    fn a_circuit_opens_probes_and_closes() {
        let (mut circuit, start) = (Circuit::default(), Instant::now());
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        for _ in 1..FAILURES {
            circuit.failed(start, 1.0);
            assert_eq!(circuit.admit(start, LIMIT), Admission::Go, "it may restart");
        }
        circuit.failed(start, 1.0);
        assert!(circuit.is_open());
        assert_eq!(circuit.admit(start, LIMIT), Admission::Refused(FIRST_PAUSE));
        assert_eq!(circuit.refuses(start), Some(FIRST_PAUSE));
        assert_eq!(circuit.refuses(at(1)), None);
        assert_eq!(circuit.admit(at(1), LIMIT), Admission::Probe);
        assert_eq!(
            circuit.admit(at(1), LIMIT),
            Admission::Refused(LIMIT),
            "one at a time"
        );
        circuit.failed(at(2), 1.0);
        assert_eq!(
            circuit.admit(at(2), LIMIT),
            Admission::Refused(2 * FIRST_PAUSE)
        );
        assert_eq!(circuit.admit(at(4), LIMIT), Admission::Probe);
        circuit.answered();
        assert_eq!(circuit, Circuit::default());
        assert_eq!(circuit.admit(at(4), LIMIT), Admission::Go);
    }

    #[test]
    fn a_probe_that_never_ends_is_followed_by_another() {
        let (mut circuit, start) = (Circuit::default(), Instant::now());
        (0..FAILURES).for_each(|_| circuit.failed(start, 0.0));
        let probed = start + LONGEST_PAUSE;
        assert_eq!(circuit.admit(probed, LIMIT), Admission::Probe);
        assert_eq!(circuit.admit(probed + LIMIT, LIMIT), Admission::Probe);
    }

    #[test]
    fn however_often_it_fails_it_is_asked_again() {
        let (mut circuit, start) = (Circuit::default(), Instant::now());
        for _ in 0..10_000 {
            circuit.failed(start, 1.0);
            let Admission::Refused(pause) = circuit.admit(start, LIMIT) else {
                continue;
            };
            assert!(pause <= LONGEST_PAUSE && pause >= FIRST_PAUSE.mul_f64(0.75));
        }
        assert_eq!(
            circuit.admit(start + LONGEST_PAUSE, LIMIT),
            Admission::Probe
        );
    }
}
