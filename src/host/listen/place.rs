//! Where a listening socket is bound, and binding it there.

use crate::config::ports::{LOOPBACK, Rule};
use crate::flow::{Protocol, Side};
use crate::host::sockets::{Setup, Sockets, deepen};
use crate::sys::socket::{self, Family, IntOption, Kind};
use std::ffi::CString;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::rc::Rc;

/// Connections that may wait to be accepted.
const BACKLOG: libc::c_int = 128;

/// What one listening socket is bound to. No two listeners have the same, so that it tells whether
/// rules that have changed still want a socket.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) side: Side,
    pub(super) protocol: Protocol,
    pub(super) port: u16,
    pub(super) spot: Rc<Spot>,
}

/// The part of a [`Place`] that all ports of a rule share.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Spot {
    /// `None` is any address of both families.
    pub(super) addr: Option<IpAddr>,
    pub(super) device: Option<String>,
}

/// A socket, bound and listening.
pub(super) struct Opened {
    pub(super) fd: OwnedFd,
    /// Whether it is of the IPv4 family.
    pub(super) v4: bool,
}

const ANY_V4: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
const ANY_V6: IpAddr = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
const LOOPBACK_V4: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const LOOPBACK_V6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);

impl Sockets {
    /// Where the ports of `rule` are bound: one socket a port, and two where a namespace does not
    /// let us bind to its loopback interface.
    pub(super) fn spots(&mut self, side: Side, rule: &Rule) -> Vec<Rc<Spot>> {
        let addr = match rule.listen {
            None if !self.setup.v6 => Some(ANY_V4),
            None if !self.setup.v4 => Some(ANY_V6),
            other => other,
        };
        self.spots_at(side, addr, rule.ifname.as_deref())
    }

    /// As [`Sockets::spots`], for a socket at `addr`.
    pub(super) fn spots_at(
        &mut self,
        side: Side,
        addr: Option<IpAddr>,
        ifname: Option<&str>,
    ) -> Vec<Rc<Spot>> {
        let spot =
            |addr, device: Option<&str>| Rc::new(Spot { addr, device: device.map(str::to_owned) });
        let device = match side {
            Side::Outside => ifname,
            Side::Inside => Some(ifname.unwrap_or(LOOPBACK)),
        };
        if side == Side::Outside || device != Some(LOOPBACK) || self.binds_to_devices_inside() {
            return vec![spot(addr, device)];
        }
        match addr {
            None => vec![spot(Some(LOOPBACK_V4), None), spot(Some(LOOPBACK_V6), None)],
            Some(ANY_V4) => vec![spot(Some(LOOPBACK_V4), None)],
            Some(ANY_V6) => vec![spot(Some(LOOPBACK_V6), None)],
            specific => vec![spot(specific, None)],
        }
    }

    /// Whether sockets inside may be bound to an interface, which before Linux 5.7 took a privilege.
    fn binds_to_devices_inside(&mut self) -> bool {
        if let Some(known) = self.inside_devices {
            return known;
        }
        let bound = self
            .open(Side::Inside, Family::V4, Kind::Datagram)
            .and_then(|(fd, _)| socket::bind_to_device(fd.as_fd(), &CString::new(LOOPBACK)?));
        let refused = matches!(&bound, Err(e) if e.kind() == io::ErrorKind::PermissionDenied);
        if refused {
            log::warn!(
                "Can't bind to interface {LOOPBACK} of the namespace: listening on 127.0.0.1 and ::1"
            );
        }
        *self.inside_devices.insert(!refused)
    }

    /// The socket for `place`; with `shared`, beside others that share the port with it.
    pub(super) fn open_place(&mut self, place: &Place, shared: bool) -> io::Result<Opened> {
        match place.spot.addr {
            Some(addr) => self.open_at(place, addr, shared, false),
            None => match self.open_at(place, ANY_V6, shared, true) {
                // The kernel has no IPv6 at all.
                Err(e) if e.raw_os_error() == Some(libc::EAFNOSUPPORT) => {
                    self.open_at(place, ANY_V4, shared, false)
                }
                other => other,
            },
        }
    }

    fn open_at(
        &mut self,
        place: &Place,
        addr: IpAddr,
        shared: bool,
        dual: bool,
    ) -> io::Result<Opened> {
        let family = if addr.is_ipv4() { Family::V4 } else { Family::V6 };
        let tcp = place.protocol == Protocol::Tcp;
        let kind = if tcp { Kind::Stream } else { Kind::Datagram };
        let (socket, setup) = self.open(place.side, family, kind)?;
        let fd = socket.as_fd();
        if tcp {
            // Old connections do not keep the port.
            socket::set(fd, IntOption::REUSE_ADDRESS, 1)?;
        } else {
            deepen(fd);
        }
        // Of what is sent to a group everyone who listens has a copy.
        if shared || (!tcp && addr.is_multicast()) {
            let option = if tcp { IntOption::REUSE_PORT } else { IntOption::REUSE_ADDRESS };
            socket::set(fd, option, 1)?;
        }
        if family == Family::V6 {
            socket::set(fd, IntOption::V6_ONLY, i32::from(!dual))?;
        }
        if setup.freebind {
            socket::set(fd, IntOption::freebind(family), 1)?;
        }
        if let Some(name) = &place.spot.device {
            socket::bind_to_device(fd, &CString::new(name.as_str())?)?;
        }
        if tcp {
            // Connections inherit both, which saves two calls for each.
            socket::set(fd, IntOption::NO_DELAY, 1)?;
            socket::set(fd, IntOption::URGENT_INLINE, 1)?;
        } else {
            socket::set(fd, IntOption::packet_info(family), 1)?;
        }
        socket::bind(fd, &address(setup, place, addr, fd))?;
        if tcp {
            socket::listen(fd, BACKLOG)?;
        } else {
            // Flows share the port with us (Datagram::connect), but two who listen must not: the
            // kernel would give all datagrams to the one who came last. So not before it is ours.
            socket::set(fd, IntOption::REUSE_ADDRESS, 1)?;
        }
        Ok(Opened { fd: socket, v4: family == Family::V4 })
    }
}

/// The address to bind `fd` to; link-local ones belong to the place's interface, to which `fd` is
/// bound already, else to the host's.
fn address(setup: &Setup, place: &Place, addr: IpAddr, fd: BorrowedFd<'_>) -> SocketAddr {
    match addr {
        IpAddr::V6(a) if a.is_unicast_link_local() => {
            let own = place.spot.device.as_ref().and_then(|_| socket::bound_interface(fd));
            SocketAddr::V6(SocketAddrV6::new(a, place.port, 0, own.unwrap_or(setup.scope)))
        }
        _ => SocketAddr::new(addr, place.port),
    }
}
