//! How often we look who listens on either side, for ports that follow services (`auto`).
//!
//! Nothing tells of new services, so that a timer must. It is quick after a start and after every
//! change, when more is likely to come, and slows down to just under a second while nothing
//! changes: then it costs one wake-up each time. A look at both sides and both protocols is 19
//! system calls and 50 to 300 microseconds, by how busy others keep caches and the kernel's locks:
//! less than a two-thousandth of a processor.

use super::{Owner, Shared};
use crate::flow::deadline::Booking;
use crate::host::{Host, Scan};
use crate::time::{Duration, Instant};

/// How soon we look again after something has changed.
const QUICK: Duration = Duration::from_millis(20);

/// How soon we look again while traffic flows.
const BUSY: Duration = Duration::from_millis(250);

/// How soon we look again otherwise: services are promised to be seen within a second.
const SLOW: Duration = Duration::from_millis(900);

/// When the next look is due.
#[derive(Debug)]
pub(super) struct Pace {
    booking: Booking,
    period: Duration,
    /// The guest has sent something since the last look.
    busy: bool,
}

impl Pace {
    pub(super) const fn new() -> Self {
        Self { booking: Booking::new(), period: QUICK, busy: false }
    }

    /// There may be new rules: looks at once.
    pub(super) fn restart(&mut self, shared: &mut Shared) {
        self.period = QUICK;
        if !shared.settings.rules.iter().any(|r| r.rule.auto) {
            return;
        }
        shared.deadlines.book(&mut self.booking, Owner::Services, Some(Instant::ZERO));
    }

    /// The guest has sent something.
    pub(super) const fn on_traffic(&mut self) {
        self.busy = true;
    }

    /// It is time for a look, or for the next step of it.
    pub(super) fn on_deadline<H: Host>(&mut self, host: &mut H, shared: &mut Shared, now: Instant) {
        self.booking.clear();
        let next = match host.scan(&shared.settings.rules) {
            Scan::Off => return,
            Scan::More => now,
            Scan::Same => {
                let slowest = if std::mem::take(&mut self.busy) { BUSY } else { SLOW };
                self.period = (self.period * 2).min(slowest);
                now + self.period
            }
            Scan::Changed => {
                self.period = QUICK;
                now + QUICK
            }
        };
        shared.deadlines.book(&mut self.booking, Owner::Services, Some(next));
    }
}
