//! The TCP machine: one [`Conn`] translates between a guest's TCP (segments) and a host's kernel
//! socket (a byte stream, called *the peer's side* here).
//!
//! Heads up! Read RFC 9293 (TCP), 5961 (blind attacks), 6298 (timers), 6582 (recovery) and 7323
//! (window scale) before you change anything here.
//!
//! It may know sequence numbers, time as a value and what the engine tells it. It holds no socket,
//! no frame, no clock and no payload: what the guest has not acknowledged lies in the socket and is
//! peeked there again, what the socket has not taken lies in the engine's staging and is only
//! counted here. There is no congestion control towards the guest, for the link has no bottleneck
//! that would drop: the guest's window and the room of its rings hold us back.
//!
//! # How the engine drives it
//!
//! 1. Feed: [`Conn::offer`] for each segment of a batch, and `on_*` for what the socket did. From
//!    all verdicts of a batch, discard the sum of [`Verdict::discard`] from the socket, send what is
//!    fresh behind what is staged, then settle: [`Conn::on_forwarded`], then [`Conn::on_staged`].
//! 2. If [`Conn::wants_shutdown`]: shut the socket's writing half down, [`Conn::on_shutdown`].
//! 3. Pump: while [`Conn::peek_plan`] gives a plan and the link gives room, peek, write headers with
//!    [`Conn::data_header`], then [`Conn::on_peeked`], [`Conn::on_drained`] or
//!    [`Conn::on_end_of_stream`].
//! 4. While [`Conn::segment_due`] and the link gives room: [`Conn::poll_segment`], which is what is
//!    due to the guest without payload. What was planned or polled counts as sent, and only that:
//!    without room, ask for nothing and come back when there is some.
//! 5. Watch the socket for [`Conn::interest`]; keep [`Conn::deadline`].
//! 6. If [`Conn::is_closed`]: close the socket, with a RST if [`Conn::wants_reset`]; forget the flow.
//!
//! Steps 2 to 6 are the same after a batch, a socket's event, a deadline and returning ring room.

mod arrive;
mod conn;
mod handshake;
mod reassembly;
mod send;
mod timer;
mod verdict;
mod window;

#[cfg(test)]
mod tests;

pub use conn::Conn;
pub use verdict::{
    Flags, Held, Limits, Outgoing, Patience, PeekPlan, Room, Segment, Sending, Verdict,
};
