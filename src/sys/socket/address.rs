//! Internet addresses as the kernel writes them.

use std::io;
use std::mem::size_of;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

/// Room for any socket address, and how much of it is used.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct RawAddress {
    storage: libc::sockaddr_storage,
    len: libc::socklen_t,
}

impl RawAddress {
    /// Room for the kernel to write to.
    pub(super) fn room() -> Self {
        // SAFETY: `sockaddr_storage` is integers only, for which zeroes are valid.
        let storage = unsafe { std::mem::zeroed() };
        Self { storage, len: size_of::<libc::sockaddr_storage>() as libc::socklen_t }
    }

    /// The same with the length that the kernel has told elsewhere.
    pub(super) const fn with_len(self, len: libc::socklen_t) -> Self {
        Self { len, ..self }
    }

    /// An address that stands at the start of `bytes`.
    pub(super) fn from_bytes(bytes: &[u8]) -> Self {
        let mut this = Self::room();
        let n = bytes.len().min(size_of::<libc::sockaddr_storage>());
        let to: *mut libc::sockaddr_storage = &raw mut this.storage;
        // SAFETY: `n` is within both, which are apart; any bytes make a valid storage.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to.cast::<u8>(), n) };
        this.len = n as libc::socklen_t;
        this
    }

    pub(super) const fn as_ptr(&self) -> *const libc::sockaddr {
        (&raw const self.storage).cast()
    }

    pub(super) const fn len(&self) -> libc::socklen_t {
        self.len
    }

    /// The pieces that accept(2) and getsockname(2) want, room restored.
    pub(super) const fn as_mut_parts(&mut self) -> (*mut libc::sockaddr, *mut libc::socklen_t) {
        self.len = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
        ((&raw mut self.storage).cast(), &raw mut self.len)
    }

    /// What the kernel has written; an error for other families.
    pub(super) fn to_socket_addr(self) -> io::Result<SocketAddr> {
        let family = libc::c_int::from(self.storage.ss_family);
        let room = self.len as usize;
        let at: *const libc::sockaddr_storage = &raw const self.storage;
        if family == libc::AF_INET && room >= size_of::<libc::sockaddr_in>() {
            // SAFETY: the storage is larger than `sockaddr_in`, aligned for every address, and
            // any bytes make a valid `sockaddr_in`.
            let raw = unsafe { at.cast::<libc::sockaddr_in>().read() };
            let addr = Ipv4Addr::from(raw.sin_addr.s_addr.to_ne_bytes());
            return Ok(SocketAddrV4::new(addr, u16::from_be(raw.sin_port)).into());
        }
        if family == libc::AF_INET6 && room >= size_of::<libc::sockaddr_in6>() {
            // SAFETY: as above, for `sockaddr_in6`.
            let raw = unsafe { at.cast::<libc::sockaddr_in6>().read() };
            let addr = Ipv6Addr::from(raw.sin6_addr.s6_addr);
            let port = u16::from_be(raw.sin6_port);
            return Ok(SocketAddrV6::new(addr, port, 0, raw.sin6_scope_id).into());
        }
        Err(io::ErrorKind::InvalidData.into())
    }
}

impl From<SocketAddr> for RawAddress {
    fn from(address: SocketAddr) -> Self {
        let mut this = Self::room();
        let at: *mut libc::sockaddr_storage = &raw mut this.storage;
        match address {
            SocketAddr::V4(a) => {
                let raw = libc::sockaddr_in {
                    sin_family: libc::AF_INET as libc::sa_family_t,
                    sin_port: a.port().to_be(),
                    sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(a.ip().octets()) },
                    sin_zero: [0; 8],
                };
                this.len = size_of::<libc::sockaddr_in>() as libc::socklen_t;
                // SAFETY: the storage is larger than `sockaddr_in` and aligned for it.
                unsafe { at.cast::<libc::sockaddr_in>().write(raw) };
            }
            SocketAddr::V6(a) => {
                let raw = libc::sockaddr_in6 {
                    sin6_family: libc::AF_INET6 as libc::sa_family_t,
                    sin6_port: a.port().to_be(),
                    sin6_flowinfo: 0,
                    sin6_addr: libc::in6_addr { s6_addr: a.ip().octets() },
                    sin6_scope_id: a.scope_id(),
                };
                this.len = size_of::<libc::sockaddr_in6>() as libc::socklen_t;
                // SAFETY: as above, for `sockaddr_in6`.
                unsafe { at.cast::<libc::sockaddr_in6>().write(raw) };
            }
        }
        this
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_survive_the_kernels_form() {
        for text in ["192.0.2.1:80", "[2001:db8::1]:65535", "[fe80::1%7]:1", "0.0.0.0:0"] {
            let Ok(address) = text.parse::<SocketAddr>() else { panic!("{text}") };
            assert_eq!(RawAddress::from(address).to_socket_addr().ok(), Some(address));
        }
    }

    #[test]
    fn an_address_that_is_cut_short_is_refused() {
        let mut raw = RawAddress::from(SocketAddr::from(([192, 0, 2, 1], 80)));
        raw.len = 8;
        assert!(raw.to_socket_addr().is_err());
        assert!(RawAddress::room().to_socket_addr().is_err());
    }
}
