//! Flows by name: numbered slots, whose tenants are told apart by generations.

use super::FlowId;

/// At most so many flows, each under a name of its own.
#[derive(Debug)]
pub struct Slots<V> {
    slots: Vec<Slot<V>>,
    free: Vec<u32>,
    len: usize,
    capacity: usize,
}

#[derive(Debug)]
struct Slot<V> {
    generation: u32,
    tenant: Option<V>,
}

impl<V> Slots<V> {
    /// No flows, and room for `capacity`. Memory is taken as they come.
    pub const fn new(capacity: usize) -> Self {
        Self { slots: Vec::new(), free: Vec::new(), len: 0, capacity }
    }

    /// How many flows there are.
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether [`Slots::insert`] would refuse.
    pub const fn is_full(&self) -> bool {
        self.len >= self.capacity
    }

    /// The name that the next [`Slots::insert`] will give.
    pub fn next_id(&self) -> Option<FlowId> {
        if self.is_full() {
            return None;
        }
        let index = match self.free.last() {
            Some(&index) => index,
            None => u32::try_from(self.slots.len()).ok()?,
        };
        let generation = self.slots.get(index as usize).map_or(0, |slot| slot.generation);
        Some(FlowId::new(index, generation))
    }

    /// Adds a flow. `None`, and `value` dropped, when there is no room.
    pub fn insert(&mut self, value: V) -> Option<FlowId> {
        let id = self.next_id()?;
        if self.free.pop().is_none() {
            self.slots.push(Slot { generation: 0, tenant: None });
        }
        self.slots.get_mut(id.index() as usize)?.tenant = Some(value);
        self.len += 1;
        Some(id)
    }

    /// The flow of this name.
    pub fn get(&self, id: FlowId) -> Option<&V> {
        let slot = self.slots.get(id.index() as usize)?;
        if slot.generation == id.generation() { slot.tenant.as_ref() } else { None }
    }

    /// The flow of this name, to be changed.
    pub fn get_mut(&mut self, id: FlowId) -> Option<&mut V> {
        let slot = self.slots.get_mut(id.index() as usize)?;
        if slot.generation == id.generation() { slot.tenant.as_mut() } else { None }
    }

    /// Whoever is in slot `index`.
    pub(super) fn at(&self, index: u32) -> Option<&V> {
        self.slots.get(index as usize)?.tenant.as_ref()
    }

    /// The name of whoever is in slot `index`.
    pub(super) fn id_at(&self, index: u32) -> Option<FlowId> {
        let slot = self.slots.get(index as usize)?;
        slot.tenant.as_ref().map(|_| FlowId::new(index, slot.generation))
    }

    /// Takes a flow out; its name is never good again (for 2^24 tenants).
    pub fn remove(&mut self, id: FlowId) -> Option<V> {
        self.get(id)?;
        let slot = self.slots.get_mut(id.index() as usize)?;
        let value = slot.tenant.take()?;
        slot.generation = (slot.generation + 1) & FlowId::GENERATION_MASK;
        self.free.push(id.index());
        self.len = self.len.saturating_sub(1);
        Some(value)
    }

    /// The names of all flows. O(flows): for rare occasions.
    pub fn ids(&self) -> impl Iterator<Item = FlowId> + '_ {
        (0..).zip(&self.slots).filter_map(|(index, slot)| {
            slot.tenant.as_ref().map(|_| FlowId::new(index, slot.generation))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_end_with_their_tenants_and_slots_are_used_again() {
        let mut slots = Slots::new(2);
        let a = slots.insert('a').unwrap();
        assert_eq!(slots.next_id().map(FlowId::index), Some(1));
        let b = slots.insert('b').unwrap();
        assert!(slots.is_full() && slots.insert('c').is_none() && slots.next_id().is_none());
        assert_eq!((slots.remove(a), slots.remove(a), slots.get(a)), (Some('a'), None, None));
        let next = slots.next_id();
        let c = slots.insert('c').unwrap();
        assert_eq!((Some(c), c.index()), (next, a.index()));
        assert_eq!((slots.get(a), slots.get(c)), (None, Some(&'c')));
        assert_eq!(slots.get_mut(a), None);
        assert_eq!(slots.ids().collect::<Vec<_>>(), [c, b]);
        assert_eq!(slots.len(), 2);
    }
}
