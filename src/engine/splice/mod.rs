//! What goes from socket to socket: connections ([`Splices`]) and exchanges of datagrams
//! ([`relay::Relays`]) between both sides, without the link.
//!
//! The bytes of a connection stay in the kernel: they go through a pipe, which a connection has
//! only while some are under way. So an idle connection costs its two sockets and nothing else.

pub(crate) mod relay;

use super::counters::DropReason;
use super::{Ctx, Owner};
use crate::flow::slots::Slots;
use crate::flow::{Endpoint, FlowId, Side};
use crate::host::Host;
use crate::token::{Interest, Readiness, Token};
use crate::translate::splice::{Conn, Outcome, Step};
use std::io;

/// Everything, and changes only: what was said stays true until a call would block.
const INTEREST: Interest =
    Interest { readable: true, writable: true, read_closed: true, edge: true };

/// All spliced connections.
#[derive(Debug)]
pub(crate) struct Splices<S, P> {
    flows: Slots<Flow<S, P>>,
}

/// One connection.
#[derive(Debug)]
struct Flow<S, P> {
    conn: Conn,
    /// The sockets, by their side.
    streams: Sides<S>,
    /// The pipes that are not empty, by the side that their bytes come from.
    pipes: Sides<Option<P>>,
    /// Whether a socket has had urgent data.
    urgent: Sides<bool>,
    /// It has used up its turn and waits for the next.
    queued: bool,
}

/// One of something for each side.
#[derive(Debug)]
struct Sides<T> {
    outside: T,
    inside: T,
}

impl<T> Sides<T> {
    /// `here` belongs to `side`, `there` to the other.
    fn new(side: Side, here: T, there: T) -> Self {
        match side {
            Side::Outside => Self { outside: here, inside: there },
            Side::Inside => Self { outside: there, inside: here },
        }
    }

    const fn of(&mut self, side: Side) -> &mut T {
        match side {
            Side::Outside => &mut self.outside,
            Side::Inside => &mut self.inside,
        }
    }
}

impl<S, P> Splices<S, P> {
    /// No connections yet, at most `capacity`.
    pub(crate) const fn new(capacity: usize) -> Self {
        Self { flows: Slots::new(capacity) }
    }

    /// How many connections there are.
    pub(crate) const fn len(&self) -> usize {
        self.flows.len()
    }

    /// A connection that was accepted on `side` goes to `to` on the other one.
    pub(crate) fn open<H: Host<Stream = S, Pipe = P>, K>(
        &mut self,
        ctx: &mut Ctx<'_, H, K>,
        accepted: S,
        side: Side,
        to: Endpoint,
    ) {
        let Some(id) = self.flows.next_id() else {
            ctx.host.reset(accepted);
            return ctx.shared.drop(DropReason::TableFull);
        };
        let there = side.other();
        let connected = ctx.host.connect(there, to, Token::Splice(id, there), INTEREST);
        let Ok((connected, _)) = connected else {
            ctx.host.reset(accepted);
            return ctx.shared.drop(DropReason::NoSocket);
        };
        let mut streams = Sides::new(side, accepted, connected);
        if ctx.host.watch(streams.of(side), Token::Splice(id, side), INTEREST).is_err() {
            // Without deadlines, nothing would ever end a connection of which we do not hear.
            ctx.host.reset(streams.outside);
            ctx.host.reset(streams.inside);
            return ctx.shared.drop(DropReason::NoSocket);
        }
        let pipes = Sides { outside: None, inside: None };
        let urgent = Sides { outside: false, inside: false };
        self.flows.insert(Flow { conn: Conn::new(), streams, pipes, urgent, queued: false });
    }

    /// The socket of `side` of connection `id` is ready.
    pub(crate) fn on_socket<H: Host<Stream = S, Pipe = P>, K>(
        &mut self,
        ctx: &mut Ctx<'_, H, K>,
        id: FlowId,
        side: Side,
        ready: Readiness,
    ) {
        let Some(flow) = self.flows.get_mut(id) else { return };
        flow.conn.on_ready(side, ready);
        *flow.urgent.of(side) |= ready.urgent;
        if !flow.queued {
            self.run(ctx, id);
        }
    }

    /// The next turn of connection `id`.
    pub(crate) fn resume<H: Host<Stream = S, Pipe = P>, K>(
        &mut self,
        ctx: &mut Ctx<'_, H, K>,
        id: FlowId,
    ) {
        if let Some(flow) = self.flows.get_mut(id) {
            flow.queued = false;
            self.run(ctx, id);
        }
    }

    fn run<H: Host<Stream = S, Pipe = P>, K>(&mut self, ctx: &mut Ctx<'_, H, K>, id: FlowId) {
        let Some(flow) = self.flows.get_mut(id) else { return };
        match flow.run(ctx) {
            End::Wait => {}
            End::Yield => {
                flow.queued = true;
                ctx.shared.make_ready(Owner::Splice(id));
            }
            End::Close => self.close(ctx, id, false),
            End::Reset => self.close(ctx, id, true),
        }
    }

    fn close<H: Host<Stream = S, Pipe = P>, K>(
        &mut self,
        ctx: &mut Ctx<'_, H, K>,
        id: FlowId,
        reset: bool,
    ) {
        let Some(flow) = self.flows.remove(id) else { return };
        ctx.shared.forget(Owner::Splice(id));
        if reset {
            ctx.host.reset(flow.streams.outside);
            ctx.host.reset(flow.streams.inside);
        }
    }
}

/// How a turn ends.
enum End {
    Wait,
    Yield,
    Close,
    Reset,
}

impl<S, P> Flow<S, P> {
    /// Moves what can be moved.
    fn run<H: Host<Stream = S, Pipe = P>, K>(&mut self, ctx: &mut Ctx<'_, H, K>) -> End {
        self.conn.begin_turn();
        let end = loop {
            match self.conn.next_step() {
                Step::Fill { from, max } => {
                    let Ok(outcome) = self.fill(ctx.host, from, max) else {
                        // There is no pipe to be had: this connection ends, the others go on.
                        ctx.shared.drop(DropReason::NoSocket);
                        break End::Reset;
                    };
                    self.conn.on_filled(from, outcome);
                }
                Step::Drain { to, len } => {
                    let outcome = self.drain(ctx.host, to, len);
                    self.conn.on_drained(to, outcome);
                }
                Step::Finish { to } => {
                    let done = ctx.host.shutdown(self.streams.of(to)).is_ok();
                    self.conn.on_finished(to, done);
                }
                Step::Hurry { to } => ctx.host.hurry(self.streams.of(to)),
                Step::Wait => break End::Wait,
                Step::Yield => break End::Yield,
                Step::Close => break End::Close,
                Step::Reset => break End::Reset,
            }
        };
        for from in [Side::Outside, Side::Inside] {
            if self.conn.pending(from) == 0
                && let Some(pipe) = self.pipes.of(from).take()
            {
                ctx.host.give_back(pipe);
            }
        }
        end
    }

    /// Fills the pipe of the direction from `from`.
    ///
    /// # Errors
    /// There is no pipe.
    fn fill<H: Host<Stream = S, Pipe = P>>(
        &mut self,
        host: &mut H,
        from: Side,
        max: usize,
    ) -> io::Result<Outcome> {
        let pipe = match self.pipes.of(from) {
            Some(pipe) => pipe,
            none => none.insert(host.pipe()?),
        };
        let stream = self.streams.of(from);
        let mut filled = outcome(host.fill(pipe, stream, max).map(|n| n.min(max)));
        if *self.urgent.of(from) && matches!(filled, Outcome::Blocked | Outcome::Moved(0)) {
            // That may be said of what stands before an urgent byte.
            filled = outcome(host.fill_one(pipe, stream).map(|n| n.min(max)));
        }
        Ok(filled)
    }

    /// Empties the pipe of the direction to `to`, of `len` bytes.
    fn drain<H: Host<Stream = S, Pipe = P>>(
        &mut self,
        host: &mut H,
        to: Side,
        len: usize,
    ) -> Outcome {
        let Some(pipe) = self.pipes.of(to.other()) else { return Outcome::Failed };
        match host.drain(pipe, self.streams.of(to), len) {
            // It cannot be: there is something in the pipe.
            Ok(0) => Outcome::Failed,
            moved => outcome(moved.map(|n| n.min(len))),
        }
    }
}

fn outcome(moved: io::Result<usize>) -> Outcome {
    match moved {
        Ok(n) => Outcome::Moved(n),
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => Outcome::Blocked,
        Err(_) => Outcome::Failed,
    }
}
