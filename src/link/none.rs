//! No link: nobody is there to send frames or to take them (`pasta --splice-only`).

use super::{Control, Frame, LinkCaps, LinkEvents, Offload, Parts, Refused, Sink, Slot, Source};
use crate::span::SpanMut;
use crate::token::Readiness;
use std::io;

/// A link that is never up.
pub type NoLink = Parts<NoControl>;

impl Default for NoLink {
    fn default() -> Self {
        Self { control: NoControl, source: NoSource, sink: NoSink }
    }
}

/// Nobody to control.
#[derive(Debug)]
pub struct NoControl;

impl Control for NoControl {
    type Source = NoSource;
    type Sink = NoSink;

    fn on_event(
        &mut self,
        _: &mut NoSource,
        _: &mut NoSink,
        _: u32,
        _: Readiness,
    ) -> io::Result<LinkEvents> {
        Ok(LinkEvents::default())
    }
}

/// No frames.
#[derive(Debug)]
pub struct NoSource;

impl Source for NoSource {
    fn receive(&mut self) -> io::Result<usize> {
        Ok(0)
    }

    fn frame(&self, _: usize) -> Frame<'_> {
        Frame { spans: &[], len: 0, offload: Offload::default() }
    }

    fn release(&mut self) {}
}

/// No room.
#[derive(Debug)]
pub struct NoSink;

impl Sink for NoSink {
    fn caps(&self) -> LinkCaps {
        LinkCaps::default()
    }

    fn reserve(&mut self, _: usize) -> Result<Slot, Refused> {
        Err(Refused::Down)
    }

    fn room<'a>(&'a self, _: &Slot, _: usize, _: &mut Vec<SpanMut<'a>>) {}

    fn write(&mut self, _: &Slot, _: usize, _: &[u8]) {}

    fn read(&self, _: &Slot, _: usize, _: &mut [u8]) -> usize {
        0
    }

    fn commit(&mut self, _: Slot, _: usize, _: Offload) {}

    fn cancel(&mut self, _: Slot) {}

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
