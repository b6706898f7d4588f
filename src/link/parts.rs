//! The shape of every link of ours: its two halves, and a control that does the rest.
//!
//! A link module says what its [`Control`] and its halves are; what joins them stands here. The
//! parts are in the open, so that something can be put around them
//! ([`capture`](super::capture)).

use super::{Link, LinkEvents, Sink, Source};
use crate::token::Readiness;
use std::io;

/// What a link does besides carrying frames: it deals with whoever is at the other end.
pub trait Control {
    /// Frames from the guest.
    type Source: Source;
    /// Frames to the guest.
    type Sink: Sink;

    /// As [`Link::on_event`].
    ///
    /// # Errors
    /// As [`Link::on_event`].
    fn on_event(
        &mut self,
        source: &mut Self::Source,
        sink: &mut Self::Sink,
        which: u32,
        ready: Readiness,
    ) -> io::Result<LinkEvents>;

    /// As [`Link::counters`].
    fn counters(
        &self,
        source: &Self::Source,
        sink: &Self::Sink,
        tell: &mut dyn FnMut(&'static str, u64),
    ) {
        let _ = (source, sink, tell);
    }
}

/// A link by its parts.
#[derive(Debug)]
pub struct Parts<C: Control> {
    /// Who is at the other end.
    pub control: C,
    /// Frames from there.
    pub source: C::Source,
    /// Frames to there.
    pub sink: C::Sink,
}

impl<C: Control> Link for Parts<C> {
    type Source = C::Source;
    type Sink = C::Sink;

    fn halves(&mut self) -> (&mut C::Source, &mut C::Sink) {
        (&mut self.source, &mut self.sink)
    }

    fn on_event(&mut self, which: u32, ready: Readiness) -> io::Result<LinkEvents> {
        self.control.on_event(&mut self.source, &mut self.sink, which, ready)
    }

    fn counters(&self, tell: &mut dyn FnMut(&'static str, u64)) {
        self.control.counters(&self.source, &self.sink, tell);
    }
}
