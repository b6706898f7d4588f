//! The protocol machines: `now` in, verdicts out. They hold no socket, frame, clock or payload.

pub mod datagram;
pub mod splice;
pub mod tcp;
