//! passt-rs: a user-mode network stack for virtual machines and containers.
//!
//! A guest's Ethernet frames become native sockets of the host. Two kernels run TCP; this
//! library translates between them. The layers, each of which may import only what stands to
//! the left of it:
//!
//! ```text
//! time, wire, span  <-  flow, config  <-  translate, service  <-  engine  <-  runtime  <-  app
//! ```
//!
//! - [`wire`] turns bytes into values and back. It keeps no state and does no I/O.
//! - [`span`] names memory that someone else may write while we look at it.
//! - [`flow`] says who talks to whom: keys, the flow table, address translation, deadlines.
//! - [`translate`] holds the protocol machines: `now` in, verdicts out; never a socket or a frame.
//! - [`service`] answers ARP, NDP, DHCP and DHCPv6: request in, reply out.
//! - [`engine`] acts on verdicts. It is generic over two seams, [`link::Link`] (the guest's side)
//!   and [`host::Host`] (the native side), and imports no implementation of either.
//! - [`link`] and [`host`] hold the seams and their implementations, which import neither
//!   `translate` nor `engine`.
//! - [`pasta`] finds or makes the network namespace that is served, and runs a command in it.
//! - [`control`] serves the control socket; [`pesto`] is its client, a program of its own.
//! - [`runtime`] owns the event loop and the only clock; [`app`] puts everything together.
//! - [`sys`] is one small function per system call that no crate wraps; [`sandbox`] takes our
//!   privileges away.
//!
//! `tests/layers.rs` reads the `use` lines and keeps this order, and the places of `unsafe`.

pub mod app;
pub mod config;
pub mod control;
pub mod daemon;
pub mod engine;
pub mod flow;
pub mod host;
pub mod link;
pub mod log;
pub mod pasta;
pub mod pesto;
pub mod runtime;
pub mod sandbox;
pub mod service;
pub mod span;
pub mod sys;
pub mod time;
pub mod token;
pub mod translate;
pub mod wire;
