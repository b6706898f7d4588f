//! Errors of the network about the guest's datagrams, as the ICMP messages that it would have got.

use super::Flow;
use crate::engine::Ctx;
use crate::engine::headers::{Addresses, MAX_IP_HEADERS};
use crate::flow::{FlowKey, Protocol, forward};
use crate::host::{Host, IcmpCause};
use crate::link::{ETHERNET_HEADER, Sink};
use crate::wire::{icmpv4, icmpv6, protocol, udp};
use std::io;
use std::net::IpAddr;

/// Errors that are taken from one socket at a time.
const MAX_ERRORS: usize = 16;

impl<D: std::fmt::Debug> Flow<D> {
    /// Takes the errors that wait on the socket and tells the guest; returns how many there were.
    pub(super) fn report_errors<H: Host<Datagram = D>, K: Sink>(
        &mut self,
        ctx: &mut Ctx<'_, H, K>,
        key: &FlowKey,
    ) -> usize {
        for n in 0..MAX_ERRORS {
            let Some(error) = ctx.host.next_error(&mut self.socket) else { return n };
            let cause = error.icmp.or_else(|| local_cause(key, error.errno));
            if let Some(cause) = cause {
                report(ctx, key, self.target.addr, &cause, &error.quoted);
            }
        }
        MAX_ERRORS
    }
}

/// The host has refused, with `error`, to open a flow or to send: tells the guest, as a router of
/// the host's network would have, if the error says something about the way.
pub(super) fn refuse<H, K: Sink>(
    ctx: &mut Ctx<'_, H, K>,
    key: &FlowKey,
    error: &io::Error,
    quoted: &[u8],
) {
    if let Some(cause) = error.raw_os_error().and_then(|errno| local_cause(key, errno)) {
        report(ctx, key, key.remote.addr, &cause, quoted);
    }
}

/// Sends an ICMP error about a datagram to `target`, which the guest knows as the remote end.
fn report<H, K: Sink>(
    ctx: &mut Ctx<'_, H, K>,
    key: &FlowKey,
    target: IpAddr,
    cause: &IcmpCause,
    quoted: &[u8],
) {
    let settings = &ctx.shared.settings;
    let (view, translation) = (&settings.view, &settings.translation);
    let offender = if cause.offender == target || cause.offender == key.remote.addr {
        // The endpoint itself, under the name that the guest knows.
        Ok(key.remote.addr)
    } else {
        forward::remote_seen(view, translation, &ctx.shared.observed, cause.offender)
    };
    let Ok(offender) = offender else { return };
    let src_mac = ctx.shared.neighbours.mac(offender);
    let addresses = Addresses { src: offender, src_mac, ..ctx.shared.to_guest(key) };
    if let Some(frame) = build(&addresses, key, cause, quoted) {
        ctx.send_frame(&frame);
    }
}

/// The ICMP message that stands for an error of this host itself.
fn local_cause(key: &FlowKey, errno: i32) -> Option<IcmpCause> {
    let v4 = key.guest.is_ipv4();
    // Groups do not answer errors (RFC 1122 3.2.2), and none is sent about them.
    if key.remote.addr.is_multicast() {
        return None;
    }
    let (kind, code) = match (errno, v4) {
        // Port, host and network unreachable, prohibited (RFC 1812 5.2.7.1); port and address
        // unreachable, no route, prohibited (RFC 4443 3.1).
        (libc::ECONNREFUSED, true) => (3, 3),
        (libc::ECONNREFUSED, false) => (1, 4),
        (libc::EHOSTUNREACH, true) => (3, 1),
        (libc::EHOSTUNREACH, false) => (1, 3),
        (libc::ENETUNREACH, true) => (3, 0),
        (libc::ENETUNREACH, false) => (1, 0),
        (libc::EACCES | libc::EPERM, true) => (3, 13),
        (libc::EACCES | libc::EPERM, false) => (1, 1),
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
