//! Last words: segments of connections that have ended, for which the link has had no room yet.
//!
//! A connection that waited with them would keep its descriptor and its place in the table for as
//! long as a guest gives no buffers.

use super::pump::write_segment;
use crate::engine::counters::DropReason;
use crate::engine::{Ctx, Owner};
use crate::flow::FlowKey;
use crate::link::{ETHERNET_HEADER, Refused, Sink};
use crate::translate::tcp::Outgoing;
use crate::wire::{ipv6, tcp};
use std::collections::VecDeque;

/// Segments to the guest, in the order in which they fell due.
#[derive(Debug)]
pub(super) struct Farewells {
    waiting: VecDeque<(FlowKey, Outgoing)>,
    most: usize,
}

impl Farewells {
    /// None yet, and at most `most`.
    pub(super) const fn new(most: usize) -> Self {
        Self { waiting: VecDeque::new(), most }
    }

    /// Keeps a segment until there is room, unless nobody is there to hear it. Where too many are
    /// kept, it is lost: a guest that goes on with the connection finds none, and is told so.
    pub(super) fn bid<H, K: Sink>(
        &mut self,
        ctx: &mut Ctx<'_, H, K>,
        key: FlowKey,
        outgoing: Outgoing,
    ) {
        if self.waiting.len() < self.most {
            self.waiting.push_back((key, outgoing));
            self.say(ctx);
        }
    }

    /// Sends as many as there is room for.
    pub(super) fn say<H, K: Sink>(&mut self, ctx: &mut Ctx<'_, H, K>) {
        let caps = ctx.sink.caps();
        while let Some((key, outgoing)) = self.waiting.front() {
            match ctx.sink.reserve(ETHERNET_HEADER + ipv6::LEN + tcp::LEN) {
                Ok(slot) => write_segment(ctx, &caps, slot, key, outgoing, 0, None),
                Err(Refused::Full) => return ctx.shared.wait_for_room(Owner::Farewells),
                Err(Refused::TooLarge) => ctx.shared.drop(DropReason::TooLarge),
                Err(Refused::Down) => self.waiting.clear(),
            }
            self.waiting.pop_front();
        }
        self.waiting = VecDeque::new();
    }
}
