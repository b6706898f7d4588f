//! Datagrams that the guest has cut into fragments, put together again within bounds.
//!
//! Rules of RFC 8200 4.5 and RFC 791 3.2, with the strictness of RFC 5722 for both families: parts
//! that overlap without being equal in place end the whole datagram. What is incomplete after
//! [`LIFETIME`], or in excess of [`MAX_DATAGRAMS`] or [`MAX_BYTES`], goes, the oldest first.

use super::packet::{Fragment, Ip};
use crate::time::{Duration, Instant};
use std::collections::VecDeque;
use std::net::IpAddr;

/// Datagrams in the making at most.
pub const MAX_DATAGRAMS: usize = 64;

/// Bytes held for all of them at most.
pub const MAX_BYTES: usize = 1 << 20;

/// How long a datagram may take to become complete.
pub const LIFETIME: Duration = Duration::from_secs(30);

/// The longest datagram: what the length fields of IP can say.
const MAX_DATAGRAM: usize = 65_535;

/// Fragments of one datagram at most: at the least MTU of IPv4, 68 bytes, even the longest one
/// has fewer with payloads worth sending.
const MAX_PARTS: usize = 1024;

/// Which datagram a fragment belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Key {
    src: IpAddr,
    dst: IpAddr,
    protocol: u8,
    id: u32,
}

#[derive(Debug)]
struct Datagram {
    key: Key,
    started: Instant,
    ttl: u8,
    bytes: Vec<u8>,
    /// The parts that are there, as (start, end), in order and apart.
    parts: Vec<(usize, usize)>,
    /// Known when the last fragment is there.
    total: Option<usize>,
}

/// What came of a fragment.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is kept, or was there already.
    Kept,
    /// It was the last one missing: the IP payload of the datagram, and the TTL of its first part.
    Complete(Vec<u8>, u8),
    /// It makes no sense, alone or with the others; all parts of the datagram are gone.
    Refused,
}

/// Datagrams in the making, the oldest first.
#[derive(Debug, Default)]
pub struct Fragments {
    datagrams: VecDeque<Datagram>,
    bytes: usize,
    expired: u64,
}

impl Fragments {
    /// Adds the fragment `part` of `ip` with payload `bytes`.
    pub fn add(&mut self, ip: &Ip, part: &Fragment, bytes: &[u8], now: Instant) -> Outcome {
        let key = Key { src: ip.src, dst: ip.dst, protocol: ip.protocol, id: part.id };
        self.expire(now);
        let index = match self.datagrams.iter().position(|d| d.key == key) {
            Some(index) => index,
            None => self.start(key, ip.ttl, now),
        };
        let Some(datagram) = self.datagrams.get_mut(index) else { return Outcome::Refused };
        let before = datagram.bytes.len();
        let accepted = datagram.add(part, bytes, ip.ttl);
        self.bytes = self.bytes.saturating_add(datagram.bytes.len() - before);
        if !accepted {
            self.remove(index);
            return Outcome::Refused;
        }
        if datagram.is_complete() {
            return match self.remove(index) {
                Some(datagram) => Outcome::Complete(datagram.bytes, datagram.ttl),
                None => Outcome::Refused,
            };
        }
        while self.bytes > MAX_BYTES {
            self.expired += 1;
            self.remove(0);
        }
        Outcome::Kept
    }

    /// Forgets datagrams that have taken too long. Returns when the next one will have.
    pub fn expire(&mut self, now: Instant) -> Option<Instant> {
        loop {
            let due = self.datagrams.front()?.started + LIFETIME;
            if due > now {
                return Some(due);
            }
            self.expired += 1;
            self.remove(0);
        }
    }

    /// How many datagrams were never completed.
    pub const fn expired(&self) -> u64 {
        self.expired
    }

    fn start(&mut self, key: Key, ttl: u8, now: Instant) -> usize {
        if self.datagrams.len() >= MAX_DATAGRAMS {
            self.expired += 1;
            self.remove(0);
        }
        let datagram =
            Datagram { key, started: now, ttl, bytes: Vec::new(), parts: Vec::new(), total: None };
        self.datagrams.push_back(datagram);
        self.datagrams.len() - 1
    }

    fn remove(&mut self, index: usize) -> Option<Datagram> {
        let datagram = self.datagrams.remove(index)?;
        self.bytes = self.bytes.saturating_sub(datagram.bytes.len());
        Some(datagram)
    }
}

impl Datagram {
    /// Adds a part; false if it contradicts what is known.
    fn add(&mut self, part: &Fragment, bytes: &[u8], ttl: u8) -> bool {
        let (start, end) = (part.offset, part.offset.saturating_add(bytes.len()));
        // All parts but the last are whole units of 8 bytes (RFC 8200 4.5).
        if end > MAX_DATAGRAM || bytes.is_empty() || (part.more && !bytes.len().is_multiple_of(8)) {
            return false;
        }
        if !part.more {
            if self.total.is_some_and(|total| total != end) {
                return false;
            }
            self.total = Some(end);
        }
        if self.total.is_some_and(|total| end > total || self.bytes.len() > total) {
            return false;
        }
        let at = self.parts.partition_point(|&(s, _)| s < start);
        if self.parts.get(at) == Some(&(start, end)) {
            return true;
        }
        let before = at.checked_sub(1).and_then(|i| self.parts.get(i)).map_or(0, |&(_, e)| e);
        let after = self.parts.get(at).map_or(usize::MAX, |&(s, _)| s);
        if before > start || after < end || self.parts.len() >= MAX_PARTS {
            return false;
        }
        if start == 0 {
            self.ttl = ttl;
        }
        if self.bytes.len() < end {
            self.bytes.resize(end, 0);
        }
        if let Some(place) = self.bytes.get_mut(start..end) {
            place.copy_from_slice(bytes);
        }
        self.parts.insert(at, (start, end));
        true
    }

    fn is_complete(&self) -> bool {
        let held: usize = self.parts.iter().map(|&(start, end)| end - start).sum();
        self.total == Some(held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(id: u32) -> Ip {
        let _ = id;
        Ip {
            src: [10, 0, 0, 1].into(),
            dst: [10, 0, 0, 2].into(),
            ttl: 64,
            protocol: 17,
            transport: 34,
            transport_len: 0,
            fragment: None,
        }
    }

    fn add(f: &mut Fragments, id: u32, offset: usize, bytes: &[u8], more: bool) -> Outcome {
        f.add(&ip(id), &Fragment { id, offset, more }, bytes, Instant::ZERO)
    }

    #[test]
    fn parts_in_any_order_make_the_datagram() {
        let mut f = Fragments::default();
        assert_eq!(add(&mut f, 1, 16, b"end", false), Outcome::Kept);
        assert_eq!(add(&mut f, 1, 0, b"01234567", true), Outcome::Kept);
        assert_eq!(add(&mut f, 1, 0, b"01234567", true), Outcome::Kept, "a duplicate");
        let whole = b"0123456789abcdefend".to_vec();
        assert_eq!(add(&mut f, 1, 8, b"89abcdef", true), Outcome::Complete(whole, 64));
        assert_eq!((f.datagrams.len(), f.bytes), (0, 0));
    }

    #[test]
    fn overlaps_and_contradictions_end_the_datagram() {
        for (offset, bytes, more) in [
            (4, &b"overlaps"[..], true),
            (8, b"odd", true),
            (0, b"short", false),
            (65_528, b"too long", true),
            (8, b"", true),
        ] {
            let mut f = Fragments::default();
            assert_eq!(add(&mut f, 1, 0, b"01234567", true), Outcome::Kept);
            assert_eq!(add(&mut f, 1, offset, bytes, more), Outcome::Refused, "{offset}");
            assert_eq!((f.datagrams.len(), f.bytes), (0, 0));
        }
    }

    #[test]
    fn the_oldest_go_when_there_are_too_many_or_too_much() {
        let mut f = Fragments::default();
        for id in 0..1000 {
            add(&mut f, id, 0, &[0; 32], true);
            assert!(f.datagrams.len() <= MAX_DATAGRAMS);
        }
        for id in 0..1000 {
            add(&mut f, id, 60_000, &[0; 32], true);
            assert!(f.bytes <= MAX_BYTES);
        }
        let late = Instant::ZERO + LIFETIME;
        assert_eq!(f.expire(late), None);
        assert_eq!((f.datagrams.len(), f.bytes), (0, 0));
        assert!(f.expired() > 0);
    }
}
