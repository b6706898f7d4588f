//! Errors of the network about the guest's datagrams, as the ICMP messages that it would have got.

use super::Flow;
use crate::engine::Ctx;
use crate::engine::headers::{Addresses, MAX_IP_HEADERS};
use crate::flow::{FlowKey, Protocol, forward};
use crate::host::{Host, IcmpCause, SocketError};
use crate::link::{ETHERNET_HEADER, Sink};
use crate::wire::{icmpv4, icmpv6, protocol, udp};
use std::net::IpAddr;

/// Errors that are taken from one socket at a time.
const MAX_ERRORS: usize = 16;

impl<D: std::fmt::Debug> Flow<D> {
    /// Takes the errors that wait on the socket and tells the guest.
    pub(super) fn report_errors<H: Host<Datagram = D>, K: Sink>(
        &mut self,
        ctx: &mut Ctx<'_, H, K>,
        key: &FlowKey,
    ) {
        for _ in 0..MAX_ERRORS {
            let Some(error) = ctx.host.next_error(&mut self.socket) else { break };
            let cause = error.icmp.or_else(|| local_cause(key, &error));
            if let Some(cause) = cause {
                self.report(ctx, key, &cause, &error.quoted);
            }
        }
    }

    fn report<H, K: Sink>(
        &self,
        ctx: &mut Ctx<'_, H, K>,
        key: &FlowKey,
        cause: &IcmpCause,
        quoted: &[u8],
    ) {
        let settings = &ctx.shared.settings;
        let offender = if cause.offender == self.target.addr {
            // The endpoint itself, under the name that the guest knows.
            Some(key.remote.addr)
        } else {
            forward::remote_seen(
                &settings.view,
                &settings.translation,
                &ctx.shared.observed,
                cause.offender,
            )
            .ok()
        };
        let Some(offender) = offender else { return };
        let addresses = Addresses { src: offender, ..ctx.shared.to_guest(key) };
        if let Some(frame) = build(&addresses, key, cause, quoted) {
            ctx.send_frame(&frame);
        }
    }
}

/// The ICMP message that stands for an error of this host itself.
fn local_cause(key: &FlowKey, error: &SocketError) -> Option<IcmpCause> {
    let v4 = key.guest.is_ipv4();
    let (kind, code) = match (error.errno, v4) {
        // Port, host and network unreachable (RFC 792); port, address and no route (RFC 4443).
        (libc::ECONNREFUSED, true) => (3, 3),
        (libc::ECONNREFUSED, false) => (1, 4),
        (libc::EHOSTUNREACH, true) => (3, 1),
        (libc::EHOSTUNREACH, false) => (1, 3),
        (libc::ENETUNREACH, true) => (3, 0),
        (libc::ENETUNREACH, false) => (1, 0),
        _ => return None,
    };
    Some(IcmpCause { offender: key.remote.addr, kind, code, info: 0 })
}

/// The whole frame of an ICMP error about a datagram of `key` from the guest.
fn build(
    addresses: &Addresses,
    key: &FlowKey,
    cause: &IcmpCause,
    quoted: &[u8],
) -> Option<Vec<u8>> {
    let packet = quote(key, quoted);
    let mut message = vec![0; icmpv6::Report::len(packet.len())];
    let protocol = match (addresses.src, addresses.dst) {
        (IpAddr::V4(_), _) => {
            message.truncate(icmpv4::Report::len(packet.len()));
            let report = icmpv4::Report::new(cause.kind, cause.code, cause.info)?;
            report.emit(&packet, &mut message);
            protocol::ICMPV4
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            let report = icmpv6::Report::new(cause.kind, cause.code, cause.info)?;
            report.emit(src, dst, &packet, &mut message);
            protocol::ICMPV6
        }
        _ => return None,
    };
    let mut ip = [0; MAX_IP_HEADERS];
    let len = addresses.emit(protocol, message.len(), &mut ip);
    let mut frame = ip.get(..len)?.to_vec();
    frame.extend_from_slice(&message);
    Some(frame)
}

/// The packet that the guest sent, rebuilt from what is left of it.
fn quote(key: &FlowKey, payload: &[u8]) -> Vec<u8> {
    let (header, protocol) = match (key.protocol, key.guest.is_ipv4()) {
        (Protocol::Echo, v4) => {
            // The kernel quotes the ICMP message; only its identifier is not the guest's.
            let mut echo = [0; 8];
            let n = payload.len().min(echo.len());
            echo[..n].copy_from_slice(&payload[..n]);
            echo[4..6].copy_from_slice(&key.guest.port.to_be_bytes());
            (echo, if v4 { protocol::ICMPV4 } else { protocol::ICMPV6 })
        }
        _ => {
            let len = u16::try_from(udp::LEN + payload.len()).unwrap_or(u16::MAX);
            let (src_port, dst_port) = (key.guest.port, key.remote.port);
            (udp::Header { src_port, dst_port, len, checksum: 0 }.to_bytes(), protocol::UDP)
        }
    };
    let body = match key.protocol {
        Protocol::Echo => payload.get(header.len()..).unwrap_or_default(),
        _ => payload,
    };
    let sent = Addresses {
        src_mac: Default::default(),
        dst_mac: Default::default(),
        src: key.guest.addr,
        dst: key.remote.addr,
        flow_label: 0,
    };
    let mut ip = [0; MAX_IP_HEADERS];
    let len = sent.emit(protocol, header.len() + body.len(), &mut ip);
    let mut packet = ip.get(ETHERNET_HEADER..len).unwrap_or_default().to_vec();
    packet.extend_from_slice(&header);
    packet.extend_from_slice(body);
    packet
}
