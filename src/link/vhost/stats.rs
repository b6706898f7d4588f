//! Counters of what went wrong, by reason.

use super::ring::Malformed;

/// What a guest or a VMM has done wrong so far. Counted, never logged one by one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Chains given back unread, by the reason's place in [`Malformed`].
    malformed: [u64; 7],
    /// Frames from the guest that were shorter than the headers of virtio-net and Ethernet.
    pub short_frames: u64,
    /// Frames from the guest that were longer than any packet.
    pub long_frames: u64,
    /// Frames from the guest with offloads that were not negotiated or make no sense.
    pub bad_offloads: u64,
    /// Frames from the guest on a ring that the VMM has disabled.
    pub disabled_frames: u64,
    /// Rings stopped because of their indices.
    pub broken_rings: u64,
    /// Messages that were refused.
    pub refused_messages: u64,
    /// Clients that were sent away: a second one, or for what they sent.
    pub dropped_clients: u64,
}

impl Stats {
    /// Chains given back unread for `reason`.
    pub fn malformed(&self, reason: Malformed) -> u64 {
        self.malformed.get(reason as usize).copied().unwrap_or(0)
    }

    /// Counts a chain.
    pub(super) fn count(&mut self, reason: Malformed) {
        if let Some(n) = self.malformed.get_mut(reason as usize) {
            *n = n.wrapping_add(1);
        }
    }

    /// Tells each count by its name.
    pub(super) fn counters(&self, tell: &mut dyn FnMut(&'static str, u64)) {
        for (reason, name) in Malformed::NAMES {
            tell(name, self.malformed(reason));
        }
        tell("frames shorter than a header", self.short_frames);
        tell("frames longer than a packet", self.long_frames);
        tell("frames with bad offloads", self.bad_offloads);
        tell("frames on a disabled ring", self.disabled_frames);
        tell("rings stopped", self.broken_rings);
        tell("vhost-user messages refused", self.refused_messages);
        tell("clients sent away", self.dropped_clients);
    }

    /// Sums of two.
    pub(super) fn plus(mut self, other: &Self) -> Self {
        for (a, b) in self.malformed.iter_mut().zip(&other.malformed) {
            *a = a.wrapping_add(*b);
        }
        self.short_frames += other.short_frames;
        self.long_frames += other.long_frames;
        self.bad_offloads += other.bad_offloads;
        self.disabled_frames += other.disabled_frames;
        self.broken_rings += other.broken_rings;
        self.refused_messages += other.refused_messages;
        self.dropped_clients += other.dropped_clients;
        self
    }
}
