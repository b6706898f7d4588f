//! The driver's side of a virtqueue, in memory that is shared by a memfd: what a guest's virtio
//! driver does, and what a hostile one could do.
//!
//! All of it is safe code over vm-memory's volatile and atomic references; mappings are leaked, so
//! that those may be `'static` and go to other threads.

use std::fs::File;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering, fence};
use vm_memory::bitmap::BitmapSlice;
use vm_memory::{FileOffset, MmapRegion, VolatileMemory, VolatileSlice};
use vmm_sys_util::eventfd::EventFd;

pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;

/// A region of the guest's memory.
pub struct Region {
    pub guest: u64,
    pub size: u64,
    pub offset: u64,
    map: &'static MmapRegion,
}

/// The guest's memory: one memfd, several regions of it.
pub struct Memory {
    pub file: File,
    pub regions: Vec<Region>,
}

/// What the VMM adds to a guest address to get its own.
pub const VMM: u64 = 0x7f12_0000_0000;

impl Memory {
    /// Maps regions of these guest addresses and sizes. In the file they lie in reverse order, so
    /// that neighbours in the guest are none for us.
    pub fn new(regions: &[(u64, u64)]) -> &'static Self {
        let file = nix::sys::memfd::memfd_create(c"guest", nix::sys::memfd::MFdFlags::empty());
        let file = File::from(file.expect("memfd"));
        let total: u64 = regions.iter().map(|r| r.1).sum();
        file.set_len(total).expect("size");
        let mut offset = total;
        let regions = regions
            .iter()
            .map(|&(guest, size)| {
                offset -= size;
                let again = File::from(file.as_fd().try_clone_to_owned().expect("dup"));
                let map = MmapRegion::from_file(FileOffset::new(again, offset), size as usize);
                let map: &'static MmapRegion = Box::leak(Box::new(map.expect("mmap")));
                Region { guest, size, offset, map }
            })
            .collect();
        Box::leak(Box::new(Self { file, regions }))
    }

    /// Descriptors of this process that are open on the memory's file.
    pub fn descriptors(&self) -> usize {
        use std::os::unix::fs::MetadataExt;
        let id = |m: std::fs::Metadata| (m.dev(), m.ino());
        let ours = id(self.file.metadata().expect("metadata"));
        std::fs::read_dir("/proc/self/fd")
            .expect("/proc")
            .filter_map(|entry| std::fs::metadata(entry.ok()?.path()).ok())
            .filter(|m| id(m.clone()) == ours)
            .count()
    }

    /// The bytes at a guest address; they must lie in one region.
    pub fn slice(&self, addr: u64, len: usize) -> VolatileSlice<'static> {
        let region = self
            .regions
            .iter()
            .find(|r| addr >= r.guest && addr + len as u64 <= r.guest + r.size)
            .expect("mapped");
        region.map.get_slice((addr - region.guest) as usize, len).expect("in region")
    }

    /// Writes bytes, across regions if need be.
    pub fn write(&self, addr: u64, bytes: &[u8]) {
        for (n, byte) in bytes.iter().enumerate() {
            self.slice(addr + n as u64, 1).copy_from(&[*byte]);
        }
    }

    /// Writes bytes that lie in one region.
    pub fn write_fast(&self, addr: u64, bytes: &[u8]) {
        self.slice(addr, bytes.len()).copy_from(bytes);
    }

    /// Reads bytes, across regions if need be.
    pub fn read(&self, addr: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        for (n, byte) in bytes.iter_mut().enumerate() {
            self.slice(addr + n as u64, 1).copy_to(std::slice::from_mut(byte));
        }
        bytes
    }

    /// Reads bytes that lie in one region.
    pub fn read_fast(&self, addr: u64, into: &mut [u8]) {
        self.slice(addr, into.len()).copy_to(into);
    }
}

/// A buffer of a chain.
#[derive(Clone, Copy, Debug)]
pub struct Buffer {
    pub addr: u64,
    pub len: u32,
    pub flags: u16,
}

/// A readable buffer.
pub const fn out(addr: u64, len: u32) -> Buffer {
    Buffer { addr, len, flags: 0 }
}

/// A writable buffer.
pub const fn room(addr: u64, len: u32) -> Buffer {
    Buffer { addr, len, flags: WRITE }
}

fn leak<B: BitmapSlice>(slice: VolatileSlice<'static, B>) -> &'static VolatileSlice<'static, B> {
    Box::leak(Box::new(slice))
}

/// The bytes of a descriptor.
pub fn descriptor(addr: u64, len: u32, flags: u16, next: u16) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&addr.to_le_bytes());
    bytes[8..12].copy_from_slice(&len.to_le_bytes());
    bytes[12..14].copy_from_slice(&flags.to_le_bytes());
    bytes[14..].copy_from_slice(&next.to_le_bytes());
    bytes
}

/// A ring, driven by the book unless its parts are written to directly.
pub struct DriverRing {
    pub memory: &'static Memory,
    pub size: u16,
    pub descriptors: u64,
    pub available: u64,
    pub used: u64,
    pub event_idx: bool,
    pub kick: EventFd,
    pub call: EventFd,
    pub err: EventFd,
    table: Vec<[&'static AtomicU64; 2]>,
    available_ring: Vec<&'static AtomicU16>,
    used_ring: Vec<[&'static AtomicU32; 2]>,
    pub available_flags: &'static AtomicU16,
    pub available_idx: &'static AtomicU16,
    pub used_event: &'static AtomicU16,
    pub used_flags: &'static AtomicU16,
    pub used_idx: &'static AtomicU16,
    pub available_event: &'static AtomicU16,
    free: Vec<u16>,
    chain_len: Vec<u16>,
    /// What we have made available, or are about to.
    pub next: u16,
    published: u16,
    pub seen: u16,
}

impl DriverRing {
    /// A ring of `size` entries at guest address `at` (which is a multiple of 4096).
    pub fn new(memory: &'static Memory, at: u64, size: u16) -> Self {
        let n = u64::from(size);
        let (descriptors, available) = (at, at + 16 * n);
        let used = (available + 6 + 2 * n).next_multiple_of(4096);
        let table = leak(memory.slice(descriptors, 16 * usize::from(size)));
        let driver = leak(memory.slice(available, 6 + 2 * usize::from(size)));
        let device = leak(memory.slice(used, 6 + 8 * usize::from(size)));
        let entries = usize::from(size);
        let flag = libc::EFD_NONBLOCK;
        Self {
            memory,
            size,
            descriptors,
            available,
            used,
            event_idx: true,
            kick: EventFd::new(flag).expect("eventfd"),
            call: EventFd::new(flag).expect("eventfd"),
            err: EventFd::new(flag).expect("eventfd"),
            table: (0..entries)
                .map(|n| [16 * n, 16 * n + 8].map(|at| table.get_atomic_ref(at).expect("table")))
                .collect(),
            available_ring: (0..entries)
                .map(|n| driver.get_atomic_ref(4 + 2 * n).expect("ring"))
                .collect(),
            used_ring: (0..entries)
                .map(|n| [4 + 8 * n, 8 + 8 * n].map(|at| device.get_atomic_ref(at).expect("ring")))
                .collect(),
            available_flags: driver.get_atomic_ref(0).expect("flags"),
            available_idx: driver.get_atomic_ref(2).expect("idx"),
            used_event: driver.get_atomic_ref(4 + 2 * entries).expect("event"),
            used_flags: device.get_atomic_ref(0).expect("flags"),
            used_idx: device.get_atomic_ref(2).expect("idx"),
            available_event: device.get_atomic_ref(4 + 8 * entries).expect("event"),
            free: (0..size).rev().collect(),
            chain_len: vec![0; entries],
            next: 0,
            published: 0,
            seen: 0,
        }
    }

    /// Bytes of guest memory that a ring of `size` takes at most.
    pub const fn footprint(size: u16) -> u64 {
        (size as u64 * 26 + 12).next_multiple_of(4096) + 4096
    }

    /// As after a reset of the guest: all indices and flags are 0, all descriptors free.
    pub fn reset(&mut self) {
        for word in [
            self.available_flags,
            self.available_idx,
            self.used_event,
            self.used_flags,
            self.used_idx,
            self.available_event,
        ] {
            word.store(0, Ordering::SeqCst);
        }
        self.free = (0..self.size).rev().collect();
        (self.next, self.published, self.seen) = (0, 0, 0);
    }

    /// Free descriptors.
    pub fn free(&self) -> usize {
        self.free.len()
    }

    /// Writes a descriptor as it is.
    pub fn set_descriptor(&self, index: u16, addr: u64, len: u32, flags: u16, next: u16) {
        let rest = u64::from(len) | (u64::from(flags) << 32) | (u64::from(next) << 48);
        let [first, second] = self.table[usize::from(index)];
        first.store(addr.to_le(), Ordering::Relaxed);
        second.store(rest.to_le(), Ordering::Relaxed);
    }

    /// Puts a head into the available ring, whatever it is.
    pub fn offer(&mut self, head: u16) {
        let entry = self.available_ring[usize::from(self.next & (self.size - 1))];
        entry.store(head.to_le(), Ordering::Relaxed);
        self.next = self.next.wrapping_add(1);
    }

    /// Adds a chain; returns its head. It is not visible before [`DriverRing::publish`].
    pub fn add(&mut self, chain: &[Buffer]) -> u16 {
        let at = self.free.len() - chain.len();
        let head = self.free[self.free.len() - 1];
        for (n, buffer) in chain.iter().enumerate() {
            let index = self.free[self.free.len() - 1 - n];
            let last = n + 1 == chain.len();
            let next = if last { 0 } else { self.free[self.free.len() - 2 - n] };
            let flags = buffer.flags | if last { 0 } else { NEXT };
            self.set_descriptor(index, buffer.addr, buffer.len, flags, next);
        }
        self.free.truncate(at);
        self.chain_len[usize::from(head)] = chain.len() as u16;
        self.offer(head);
        head
    }

    /// Makes all that was added visible; kicks if the device wants it. Returns whether it did.
    pub fn publish(&mut self) -> bool {
        let old = self.published;
        self.available_idx.store(self.next.to_le(), Ordering::Release);
        self.published = self.next;
        fence(Ordering::SeqCst);
        let wanted = if self.event_idx {
            let event = u16::from_le(self.available_event.load(Ordering::Relaxed));
            self.next.wrapping_sub(event).wrapping_sub(1) < self.next.wrapping_sub(old)
        } else {
            u16::from_le(self.used_flags.load(Ordering::Relaxed)) & 1 == 0
        };
        if wanted {
            self.kick.write(1).expect("kick");
        }
        wanted
    }

    /// Takes the next used element: head and length. Its descriptors are free then.
    pub fn used(&mut self) -> Option<(u16, u32)> {
        if u16::from_le(self.used_idx.load(Ordering::Acquire)) == self.seen {
            return None;
        }
        let element = self.used_ring[usize::from(self.seen & (self.size - 1))];
        let [id, len] = element.map(|word| u32::from_le(word.load(Ordering::Relaxed)));
        self.seen = self.seen.wrapping_add(1);
        let head = u16::try_from(id).expect("an id that we gave");
        self.reclaim(head);
        Some((head, len))
    }

    /// All used elements that are there.
    pub fn all_used(&mut self) -> Vec<(u16, u32)> {
        std::iter::from_fn(|| self.used()).collect()
    }

    /// Asks to be told of the next used element (EVENT_IDX).
    pub fn want_call(&self) {
        self.used_event.store(self.seen.to_le(), Ordering::SeqCst);
    }

    /// Whether the device has signalled since the last time this was asked.
    pub fn was_called(&self) -> bool {
        self.call.read().is_ok()
    }

    fn reclaim(&mut self, head: u16) {
        let mut index = head;
        for _ in 0..std::mem::take(&mut self.chain_len[usize::from(head)]) {
            self.free.push(index);
            index = (u64::from_le(self.table[usize::from(index)][1].load(Ordering::Relaxed)) >> 48)
                as u16;
        }
    }
}
