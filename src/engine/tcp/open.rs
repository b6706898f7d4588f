//! New connections: from the guest by a SYN, from outside by a listener.

use super::Tcp;
use super::flow::{Share, TcpFlow};
use crate::engine::Ctx;
use crate::engine::counters::DropReason;
use crate::engine::splice::Splices;
use crate::flow::forward::{self, Arrival, Destination};
use crate::flow::{Endpoint, FlowId, FlowKey, Protocol, Side};
use crate::host::{Accepted, Connect, Host};
use crate::link::Sink;
use crate::token::{Interest, Token};
use crate::translate::tcp::{Conn, Limits, Segment};
use crate::wire::seq::Mss;
use std::io::ErrorKind;

/// Connections taken from a listener per event, so that one cannot starve the rest.
const ACCEPTS: usize = 64;

/// What a socket that is connecting is watched for.
const CONNECTING: Interest =
    Interest { readable: false, writable: true, read_closed: true, edge: true };

impl<S: std::fmt::Debug> Tcp<S> {
    /// The guest's SYN opens `key`.
    pub(super) fn open_from_guest<H: Host<Stream = S>, K: Sink>(
        &mut self,
        ctx: &mut Ctx<'_, H, K>,
        key: FlowKey,
        syn: &Segment,
    ) -> Result<(), DropReason> {
        if !may_connect(&key.guest) || !may_connect(&key.remote) {
            return Err(DropReason::BadEndpoint);
        }
        let settings = &ctx.shared.settings;
        let target =
            forward::outbound(&settings.view, &settings.translation, Protocol::Tcp, key.remote)
                .map_err(|_| DropReason::NoTarget)?;
        let id = self.table.next_id().ok_or(DropReason::TableFull)?;
        let (stream, connect) =
            match ctx.host.connect(Side::Outside, target, Token::Tcp(id), CONNECTING) {
                Ok(connected) => connected,
                Err(e) => {
                    // Out of descriptors or memory: the guest repeats its SYN, and better times come.
                    // Anything else says that there is no way: let the guest know.
                    if !matches!(e.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM))
                    {
                        super::refuse::answer(ctx, &key, syn);
                    }
                    return Err(DropReason::NoSocket);
                }
            };
        let isn = ctx.shared.hasher.isn(&key, ctx.now);
        let conn = Conn::guest_opens(syn, isn, &self.limits(ctx, &key), ctx.now);
        let flow = TcpFlow::new(conn, stream, connect);
        let id = self.table.insert(key, flow).ok_or(DropReason::TableFull)?;
        if connect == Connect::Done
            && let Some((_, flow)) = self.table.get_mut(id)
        {
            flow.conn.on_connected(ctx.now);
        }
        self.advance(ctx, id);
        Ok(())
    }

    /// Listener `listener` has connections.
    pub(crate) fn on_listener<H: Host<Stream = S>, K: Sink>(
        &mut self,
        ctx: &mut Ctx<'_, H, K>,
        splices: &mut Splices<S, H::Pipe>,
        listener: u32,
    ) {
        let side = ctx.host.listener_side(listener);
        for _ in 0..ACCEPTS {
            match ctx.host.accept(listener) {
                Ok(accepted) => match destination_of(ctx, side, &accepted) {
                    Some(Destination::Link(key)) => self.open_from_peer(ctx, accepted.stream, key),
                    Some(Destination::Splice(to)) => splices.open(ctx, accepted.stream, side, to),
                    None => {
                        ctx.host.reset(accepted.stream);
                        ctx.shared.drop(DropReason::Refused);
                    }
                },
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                // One connection has failed, not the listener: the next may do.
                Err(_) => ctx.shared.drop(DropReason::Refused),
            }
            if ctx.host.is_starved() {
                break;
            }
        }
    }

    fn open_from_peer<H: Host<Stream = S>, K: Sink>(
        &mut self,
        ctx: &mut Ctx<'_, H, K>,
        stream: S,
        key: FlowKey,
    ) {
        if let Some(old) = self.table.find(&key) {
            self.end_if_over(ctx, old);
        }
        if self.table.is_full() || self.table.find(&key).is_some() {
            ctx.host.reset(stream);
            return ctx.shared.drop(DropReason::TableFull);
        }
        let isn = ctx.shared.hasher.isn(&key, ctx.now);
        let conn = Conn::peer_opens(isn, &self.limits(ctx, &key), ctx.now);
        let flow = TcpFlow::new(conn, stream, Connect::Done);
        if let Some(id) = self.table.insert(key, flow) {
            self.advance(ctx, id);
        }
    }

    /// A peer has come again: if flow `id` is over as far as the kernel is concerned, and only we
    /// have not been told yet or still have something for the guest, it ends here.
    fn end_if_over<H: Host<Stream = S>, K: Sink>(&mut self, ctx: &mut Ctx<'_, H, K>, id: FlowId) {
        let Some((_, flow)) = self.table.get_mut(id) else { return };
        if flow.is_over(ctx.host) {
            flow.conn.on_socket_error();
            self.advance(ctx, id);
        }
    }

    /// What a new connection of this family and link may use.
    fn limits<H, K>(&self, ctx: &Ctx<'_, H, K>, key: &FlowKey) -> Limits {
        let mtu = ctx.shared.settings.view.mtu.unwrap_or(1500);
        let (headers, max) = if key.guest.is_ipv4() { (40, 65_492) } else { (60, 65_472) };
        let mss = mtu.saturating_sub(headers).max(1);
        // What an assigned MTU allows is all that a guest can take, whatever it announces.
        let max_send = if ctx.shared.settings.view.mtu.is_some() { mss } else { max };
        Limits {
            mss: Mss(mss),
            max_send_mss: Mss(max_send),
            staging: Share { budget: &self.budget, flows: self.table.len() + 1 }.room(0),
            patience: ctx.shared.settings.patience,
            ..Limits::DEFAULT
        }
    }
}

/// Where a connection goes that a listener on `side` has accepted.
fn destination_of<H, K, S>(
    ctx: &Ctx<'_, H, K>,
    side: Side,
    accepted: &Accepted<S>,
) -> Option<Destination> {
    if !may_connect(&accepted.peer) {
        return None;
    }
    let rule = ctx.shared.settings.rules.get(accepted.rule)?;
    let arrival = Arrival { side, rule, peer: accepted.peer, local: accepted.local };
    ctx.shared.destination(&arrival).ok()
}

/// Whether a TCP connection may have this end (`data-plane` 3.3).
fn may_connect(end: &Endpoint) -> bool {
    let broadcast = matches!(end.addr, std::net::IpAddr::V4(a) if a.is_broadcast());
    end.port != 0 && !end.addr.is_unspecified() && !end.addr.is_multicast() && !broadcast
}
