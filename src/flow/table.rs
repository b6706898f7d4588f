//! The flow table: slots, and an index by keyed hash.
//!
//! The hash is SipHash-2-4 under a key drawn at start, for guests and peers choose addresses and
//! ports; the same hash makes initial sequence numbers (RFC 6528) and IPv6 flow labels.

use super::slots::Slots;
use super::{Endpoint, FlowId, FlowKey};
use crate::time::Instant;
use crate::wire::seq::SeqNum;
use hashbrown::HashTable;
use siphasher::sip::SipHasher24;
use std::hash::Hasher;
use std::net::IpAddr;

/// Flows of one protocol that the table takes at most, unless told otherwise.
pub const DEFAULT_CAPACITY: usize = 131_071;

/// The keyed hash of flows.
#[derive(Clone, Copy, Debug)]
pub struct FlowHasher {
    key: [u8; 16],
}

impl FlowHasher {
    /// A hasher under a key that nobody outside can guess.
    pub const fn new(key: [u8; 16]) -> Self {
        Self { key }
    }

    /// The hash of a flow.
    pub fn hash(&self, flow: &FlowKey) -> u64 {
        let mut bytes = [0; 37];
        put(&mut bytes, 0, flow.guest);
        put(&mut bytes, 18, flow.remote);
        bytes[36] = flow.protocol as u8;
        let mut sip = SipHasher24::new_with_key(&self.key);
        sip.write(&bytes);
        sip.finish()
    }

    /// The initial sequence number of a connection opened now: a clock of 32 ns plus the folded
    /// hash (RFC 6528 3).
    pub fn isn(&self, flow: &FlowKey, now: Instant) -> SeqNum {
        let hash = self.hash(flow);
        let clock = (now.as_nanos() >> 5) as u32;
        SeqNum(((hash >> 32) as u32 ^ hash as u32).wrapping_add(clock))
    }

    /// Where counters start that nobody outside shall guess.
    pub fn counter_seed(&self) -> u32 {
        let mut sip = SipHasher24::new_with_key(&self.key);
        sip.write(b"counter");
        sip.finish() as u32
    }

    /// The IPv6 flow label of our direction of a flow: 20 bits, never 0 (RFC 6437 3).
    pub fn flow_label(&self, flow: &FlowKey) -> u32 {
        // Other bits than the index and the ISN show, so that neither tells of the other.
        let label = (self.hash(flow).rotate_left(17) ^ 0x5a5a_5a5a) as u32 & 0xf_ffff;
        if label == 0 { 1 } else { label }
    }
}

/// Writes an endpoint as 16 bytes of address (IPv4 mapped) and 2 of port.
fn put(bytes: &mut [u8; 37], at: usize, endpoint: Endpoint) {
    let addr = match endpoint.addr {
        IpAddr::V4(a) => a.to_ipv6_mapped(),
        IpAddr::V6(a) => a,
    };
    bytes[at..at + 16].copy_from_slice(&addr.octets());
    bytes[at + 16..at + 18].copy_from_slice(&endpoint.port.to_be_bytes());
}

/// What flows are found by.
pub trait Key: Copy + Eq {
    /// Its hash.
    fn hash(&self, hasher: &FlowHasher) -> u64;
}

impl Key for FlowKey {
    fn hash(&self, hasher: &FlowHasher) -> u64 {
        hasher.hash(self)
    }
}

/// Flows of one protocol, found by name or by key.
#[derive(Debug)]
pub struct Table<V, K = FlowKey> {
    slots: Slots<(K, V)>,
    index: HashTable<u32>,
    hasher: FlowHasher,
}

impl<V, K: Key> Table<V, K> {
    /// An empty table for at most `capacity` flows.
    pub const fn new(capacity: usize, hasher: FlowHasher) -> Self {
        Self { slots: Slots::new(capacity), index: HashTable::new(), hasher }
    }

    /// How many flows there are.
    pub const fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether there are none.
    pub const fn is_empty(&self) -> bool {
        self.slots.len() == 0
    }

    /// Whether [`Table::insert`] would refuse.
    pub const fn is_full(&self) -> bool {
        self.slots.is_full()
    }

    /// The flow with this key.
    pub fn find(&self, key: &K) -> Option<FlowId> {
        let slots = &self.slots;
        let hash = key.hash(&self.hasher);
        let &index = self.index.find(hash, |&i| key_of(slots, i) == Some(key))?;
        slots.id_at(index)
    }

    /// The name that the next [`Table::insert`] will give, for sockets that are made before.
    pub fn next_id(&self) -> Option<FlowId> {
        self.slots.next_id()
    }

    /// Adds a flow. `None`, and `value` dropped, when the table is full or has this key.
    pub fn insert(&mut self, key: K, value: V) -> Option<FlowId> {
        if self.is_full() || self.find(&key).is_some() {
            return None;
        }
        let id = self.slots.insert((key, value))?;
        let (slots, hasher) = (&self.slots, &self.hasher);
        let rehash = |&i: &u32| key_of(slots, i).map_or(0, |k| k.hash(hasher));
        self.index.insert_unique(key.hash(hasher), id.index(), rehash);
        Some(id)
    }

    /// The flow and its key.
    pub fn get(&self, id: FlowId) -> Option<(&K, &V)> {
        self.slots.get(id).map(|(key, value)| (key, value))
    }

    /// The flow, to be changed, and its key.
    pub fn get_mut(&mut self, id: FlowId) -> Option<(&K, &mut V)> {
        self.slots.get_mut(id).map(|(key, value)| (&*key, value))
    }

    /// The flow is found by name only from now on, and another may have its key.
    pub fn unlist(&mut self, id: FlowId) {
        let Some((key, _)) = self.slots.get(id) else { return };
        if let Ok(entry) = self.index.find_entry(key.hash(&self.hasher), |&i| i == id.index()) {
            entry.remove();
        }
    }

    /// Takes a flow out; its name is never good again (for 2^24 tenants).
    pub fn remove(&mut self, id: FlowId) -> Option<(K, V)> {
        self.unlist(id);
        self.slots.remove(id)
    }

    /// The names of all flows, in no particular order. O(flows): for rare occasions.
    pub fn ids(&self) -> impl Iterator<Item = FlowId> + '_ {
        self.slots.ids()
    }
}

fn key_of<V, K>(slots: &Slots<(K, V)>, index: u32) -> Option<&K> {
    slots.at(index).map(|(key, _)| key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::Protocol;
    use std::collections::HashMap;

    fn key(n: u16) -> FlowKey {
        FlowKey {
            protocol: Protocol::Tcp,
            guest: Endpoint::new([10, 0, 0, 1].into(), n),
            remote: Endpoint::new([10, 0, 0, 2].into(), 80),
        }
    }

    fn table(capacity: usize) -> Table<u16> {
        Table::new(capacity, FlowHasher::new([7; 16]))
    }

    #[test]
    fn a_name_ends_with_its_tenant() {
        let mut t = table(2);
        let a = t.insert(key(1), 1).unwrap();
        assert_eq!(t.insert(key(1), 9), None, "one flow per key");
        t.insert(key(2), 2).unwrap();
        assert!(t.is_full() && t.insert(key(3), 3).is_none());
        assert_eq!(t.remove(a), Some((key(1), 1)));
        assert_eq!((t.get(a), t.find(&key(1))), (None, None));
        let next = t.next_id().unwrap();
        let c = t.insert(key(3), 3).unwrap();
        assert_eq!((c, c.index()), (next, a.index()));
        assert_ne!(c, a);
        assert_eq!(t.remove(a), None);
        assert_eq!(t.get(c), Some((&key(3), &3)));
    }

    #[test]
    fn a_flow_may_leave_its_key_to_another() {
        let mut t = table(2);
        let old = t.insert(key(1), 1).unwrap();
        t.unlist(old);
        t.unlist(old);
        assert_eq!((t.find(&key(1)), t.get(old), t.len()), (None, Some((&key(1), &1)), 1));
        let new = t.insert(key(1), 2).unwrap();
        assert!(t.is_full());
        assert_eq!(t.find(&key(1)), Some(new));
        assert_eq!(t.remove(old), Some((key(1), 1)));
        assert_eq!(t.find(&key(1)), Some(new), "that of the other is left alone");
        assert_eq!(t.remove(new), Some((key(1), 2)));
        assert!(t.is_empty() && t.find(&key(1)).is_none());
    }

    #[test]
    fn it_agrees_with_a_map_over_many_operations() {
        let (mut t, mut map) = (table(500), HashMap::new());
        let mut random = 1u64;
        for _ in 0..20_000 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let n = (random >> 40) as u16 % 700;
            if random >> 63 == 0 {
                if let Some(id) = t.insert(key(n), n) {
                    assert_eq!(map.insert(n, id), None);
                }
            } else if let Some(id) = map.remove(&n) {
                assert_eq!(t.remove(id), Some((key(n), n)));
            }
            assert_eq!(t.find(&key(n)), map.get(&n).copied());
            assert_eq!(t.len(), map.len());
        }
        assert_eq!(t.ids().count(), map.len());
    }

    #[test]
    fn sequence_numbers_and_labels_depend_on_flow_and_key() {
        let (h, other) = (FlowHasher::new([1; 16]), FlowHasher::new([2; 16]));
        let now = Instant::from_nanos(64);
        assert_ne!(h.isn(&key(1), now), h.isn(&key(2), now));
        assert_ne!(h.isn(&key(1), now), other.isn(&key(1), now));
        assert_eq!(h.isn(&key(1), now).distance_from(h.isn(&key(1), Instant::ZERO)), 2);
        for n in 0..2000 {
            let label = h.flow_label(&key(n));
            assert!(label != 0 && label < 1 << 20);
        }
        assert_ne!(h.flow_label(&key(1)), h.flow_label(&key(2)));
    }
}
