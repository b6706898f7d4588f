//! Exchanges that share the socket of a listener.
//!
//! What comes to a port is answered from a second socket with that port, which is connected to the
//! peer. Whoever has given up the right to ports below 1024 cannot bind one to those: the listener
//! was opened before. Then the listener's own socket sends, told with each message where it goes
//! and where it comes from, and what the peer sends keeps coming to the listener. Errors of the
//! network are not heard of: the kernel tells them to connected sockets only.

use super::datagram::Tables;
use super::{Setup, Sockets};
use crate::flow::Endpoint;
use crate::host::Outbound;
use crate::host::listen::Listener;
use crate::span::Span;
use crate::sys::socket::message::Route;
use std::io;
use std::net::{IpAddr, SocketAddr, SocketAddrV6};

/// An exchange through the socket of a listener. It is over, as far as sending goes, when the
/// listener is closed.
#[derive(Clone, Copy, Debug)]
pub struct Beside {
    listener: u32,
    to: SocketAddr,
    from: IpAddr,
}

impl Beside {
    fn new(number: u32, listener: &Listener, setup: &Setup, ours: Endpoint, to: Endpoint) -> Self {
        let (to, from) = (setup.socket_addr(to), ours.addr);
        if listener.is_ipv4() {
            return Self { listener: number, to, from };
        }
        // A socket of IPv6 that takes both families knows IPv4 addresses as mapped ones.
        let mapped = |addr| match addr {
            IpAddr::V4(addr) => addr.to_ipv6_mapped(),
            IpAddr::V6(addr) => addr,
        };
        let to = match to {
            SocketAddr::V4(to) => SocketAddrV6::new(to.ip().to_ipv6_mapped(), to.port(), 0, 0),
            SocketAddr::V6(to) => to,
        };
        Self { listener: number, to: to.into(), from: mapped(from).into() }
    }

    /// Sends `messages`, as [`crate::host::Host::send_messages`] says.
    fn send(
        &self,
        listener: &Listener,
        tables: &mut Tables,
        messages: &[Outbound],
        spans: &[Span<'_>],
        ttl: u8,
    ) -> io::Result<usize> {
        // One of 0 would not leave us.
        let route = Route { to: self.to, from: self.from, ttl: ttl.max(1) };
        let parts = messages.iter().map(|message| (message.spans, message.segment));
        tables.messages.send(listener.fd(), Some(&route), parts, spans)
    }
}

impl Sockets {
    /// An exchange between `ours` and `remote` through the socket of `listener`.
    pub(super) fn share(
        &self,
        listener: u32,
        ours: Endpoint,
        remote: Endpoint,
    ) -> io::Result<Beside> {
        let of = self.listeners.get(listener).ok_or(io::ErrorKind::NotFound)?;
        let setup = self.setup_of(of.listening().side);
        Ok(Beside::new(listener, of, setup, ours, remote))
    }

    /// Sends `messages` on their way through the socket of a listener.
    pub(super) fn send_beside(
        &mut self,
        beside: Beside,
        messages: &[Outbound],
        spans: &[Span<'_>],
        ttl: u8,
    ) -> io::Result<usize> {
        let listener = self.listeners.get(beside.listener).ok_or(io::ErrorKind::NotConnected)?;
        beside.send(listener, &mut self.tables, messages, spans, ttl)
    }
}
