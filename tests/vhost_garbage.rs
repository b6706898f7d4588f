//! Random garbage for the vhost-user device, from fixed seeds: it may refuse, stop a ring or end a
//! session, but never panics, blocks or goes on for ever.

mod common;

use common::driver::{DriverRing, INDIRECT, NEXT, VMM, WRITE, descriptor};
use common::frontend::{
    ADD_MEM_REG, BUFFERS, FrontEnd, Machine, NEED_REPLY, Options, PLAIN, RX_RING, SET_MEM_TABLE,
    SET_VRING_ADDR, SET_VRING_CALL, SET_VRING_ERR, SET_VRING_KICK, TX_RING, message, state, words,
};
use passt::link::vhost::{Malformed, VhostLink, features};
use passt::link::{Link, Offload, Refused, Sink, Source};
use passt::span;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use vmm_sys_util::eventfd::EventFd;

/// xorshift64*: repeatable, and good enough.
struct Random(u64);

impl Random {
    const fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }

    /// An address that is good more often than not, and otherwise at some edge.
    fn addr(&mut self) -> u64 {
        match self.below(10) {
            0 => self.next(),
            1 => u64::MAX - self.below(64),
            2 => (8 << 20) - self.below(4096),
            3 => (16 << 20) - self.below(4096),
            4 => (40 << 20) - self.below(4096),
            _ => BUFFERS + self.below(4 << 20),
        }
    }

    fn len(&mut self) -> u32 {
        match self.below(10) {
            0 => self.next() as u32,
            1 => 0,
            2 => self.below(30) as u32,
            3 => 16 * self.below(80) as u32,
            _ => self.below(4096) as u32,
        }
    }
}

/// Scribbles over a ring, and makes some of it available.
fn scribble(ring: &mut DriverRing, random: &mut Random) {
    let direction = if random.chance(50) { WRITE } else { 0 };
    for _ in 0..random.below(64) {
        let mut flags = if random.chance(10) { random.next() as u16 } else { direction };
        if random.chance(30) {
            flags |= NEXT;
        }
        if random.chance(10) {
            flags |= INDIRECT;
        }
        let (addr, len) = (random.addr(), random.len());
        let next = random.below(u64::from(ring.size) + 2) as u16;
        let index = random.below(u64::from(ring.size)) as u16;
        ring.set_descriptor(index, addr, len, flags, next);
        if flags & INDIRECT != 0 && random.chance(80) {
            let table = BUFFERS + 16 * random.below(1000);
            ring.set_descriptor(index, table, 16 * random.below(64) as u32, flags & !NEXT, 0);
            for n in 0..64 {
                let flags = direction | if random.chance(70) { NEXT } else { 0 };
                let entry = descriptor(random.addr(), random.len(), flags, n as u16 + 1);
                ring.memory.write_fast(table + 16 * n, &entry);
            }
        }
    }
    let outstanding = ring.next.wrapping_sub(ring.used_idx.load(Ordering::Relaxed));
    let room = ring.size.saturating_sub(outstanding);
    for _ in 0..random.below(40).min(u64::from(room)) {
        let beyond = u64::from(random.chance(1));
        let head = random.below(u64::from(ring.size) + beyond * 3) as u16;
        ring.offer(head);
    }
    for word in [ring.available_flags, ring.used_event, ring.used_flags, ring.available_event] {
        if random.chance(20) {
            word.store(random.next() as u16, Ordering::Relaxed);
        }
    }
    match random.below(200) {
        0 => ring.available_idx.store(random.next() as u16, Ordering::Release),
        1 => ring.used_idx.store(random.next() as u16, Ordering::Release),
        _ => {}
    }
    ring.publish();
}

/// Takes what frames there are. A ring's worth is the most that can be there.
fn receive(link: &mut VhostLink, size: u16) {
    let (source, _) = link.halves();
    let mut bytes = vec![0; 70_000];
    let mut batches = 0;
    loop {
        let n = source.receive().expect("receive");
        if n == 0 {
            return;
        }
        for index in 0..=n {
            let frame = source.frame(index);
            assert!(frame.len <= 65_549 && frame.spans.len() <= 256 + 64);
            assert_eq!(span::gather(frame.spans, 0, &mut bytes), frame.len);
        }
        source.release();
        batches += 1;
        assert!(batches <= u32::from(size) + 1, "more batches than chains");
    }
}

/// Does something with slots.
fn send(link: &mut VhostLink, random: &mut Random) {
    let (_, sink) = link.halves();
    let mut slots = Vec::new();
    for _ in 0..random.below(8) {
        let len = if random.chance(30) { random.below(70_000) } else { random.below(3000) };
        match sink.reserve(len as usize) {
            Ok(slot) => slots.push(slot),
            Err(Refused::Down) => break,
            Err(_) => {}
        }
    }
    let kept = random.below(slots.len() as u64 + 1) as usize;
    for (n, slot) in slots.into_iter().enumerate() {
        let mut spans = Vec::new();
        sink.room(&slot, random.below(100) as usize, &mut spans);
        drop(spans);
        sink.write(&slot, random.below(3000) as usize, &[0xaa; 200]);
        sink.read(&slot, random.below(3000) as usize, &mut [0; 100]);
        if n < kept {
            sink.commit(slot, random.below(70_000) as usize, Offload::default());
            if random.chance(10) {
                sink.flush().expect("flush");
            }
        } else {
            sink.cancel(slot);
        }
    }
    sink.flush().expect("flush");
}

#[test]
fn garbage_in_rings_is_survived() {
    use Malformed::{Direction, Empty, Index, Indirect, Long, Loop, Unmapped};
    let mut seen = [0; 9];
    for seed in 1..=8 {
        let mut random = Random::new(seed);
        let optional = features::MRG_RXBUF | features::EVENT_IDX | features::INDIRECT_DESC;
        let features = features::ALL & !(random.next() & optional);
        let size = random.pick(&[1u16, 2, 16, 256, 1024]);
        let mut m = Machine::new(Options { features, size, ..Options::default() });
        for _ in 0..3000 {
            scribble(&mut m.tx, &mut random);
            scribble(&mut m.rx, &mut random);
            m.pump();
            receive(&mut m.link, size);
            send(&mut m.link, &mut random);
            let broken = m.tx.err.read().is_ok() | m.rx.err.read().is_ok();
            if broken || random.chance(1) {
                m.stop_ring(0);
                m.stop_ring(1);
                m.tx.reset();
                m.rx.reset();
                m.start_rings();
            }
        }
        let stats = m.link.stats();
        let reasons =
            [Direction, Empty, Index, Indirect, Loop, Unmapped].map(|r| stats.malformed(r));
        let others = [stats.broken_rings, stats.short_frames, stats.malformed(Long)];
        for (sum, n) in seen.iter_mut().zip(reasons.into_iter().chain(others)) {
            *sum += n;
        }
    }
    // Too many pieces are too unlikely; all else must have come up.
    assert!(seen[..8].iter().all(|n| *n > 0), "{seen:?}");
}

#[test]
fn a_guest_that_scribbles_while_we_look_is_survived() {
    use std::sync::Arc;
    use std::sync::atomic::AtomicBool;
    let mut m = Machine::new(Options::default());
    let stop = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&stop);
    let mut rings = [
        std::mem::replace(&mut m.tx, DriverRing::new(m.memory, 0x18_0000, 2)),
        std::mem::replace(&mut m.rx, DriverRing::new(m.memory, 0x19_0000, 2)),
    ];
    let guest = std::thread::spawn(move || {
        let mut random = Random(77);
        while !flag.load(Ordering::Relaxed) {
            for ring in &mut rings {
                scribble(ring, &mut random);
                // Indices run, so that there is always something to look at.
                ring.next = ring.next.wrapping_add(random.below(3) as u16);
            }
        }
    });
    let mut random = Random(78);
    for round in 0..3000 {
        m.pump();
        let (source, _) = m.link.halves();
        for _ in 0..4 {
            if source.receive().expect("receive") == 0 {
                break;
            }
            source.release();
        }
        send(&mut m.link, &mut random);
        if round % 16 == 0 {
            m.stop_ring(0);
            m.stop_ring(1);
            for (index, at) in [(0, RX_RING), (1, TX_RING)] {
                let ring = DriverRing::new(m.memory, at, 256);
                let base = u16::from_le(ring.available_idx.load(Ordering::Relaxed));
                let fds = [ring.call.as_raw_fd(), ring.kick.as_raw_fd()];
                m.say(common::frontend::SET_VRING_BASE, &state(index, u32::from(base)), &[]);
                m.say(SET_VRING_CALL, &words(&[u64::from(index)]), &fds[..1]);
                m.say(SET_VRING_KICK, &words(&[u64::from(index)]), &fds[1..]);
            }
        }
    }
    stop.store(true, Ordering::Relaxed);
    guest.join().expect("guest");
}

/// Descriptors of all kinds.
struct Fds {
    memory: File,
    small: File,
    event: EventFd,
    null: File,
    socket: UnixStream,
    _other: UnixStream,
}

impl Fds {
    fn pick(&self, random: &mut Random) -> RawFd {
        let all = [
            self.memory.as_raw_fd(),
            self.memory.as_raw_fd(),
            self.event.as_raw_fd(),
            self.event.as_raw_fd(),
            self.small.as_raw_fd(),
            self.null.as_raw_fd(),
            self.socket.as_raw_fd(),
        ];
        random.pick(&all)
    }
}

/// A message that may make sense.
fn random_message(random: &mut Random, fds: &Fds) -> (Vec<u8>, Vec<RawFd>) {
    let request = match random.below(20) {
        0 => random.next() as u32,
        1..=3 => random.pick(&[SET_MEM_TABLE, ADD_MEM_REG]),
        4..=6 => random.pick(&[SET_VRING_KICK, SET_VRING_CALL, SET_VRING_ERR]),
        7..=9 => random.below(20) as u32,
        _ => random.below(48) as u32,
    };
    let flags =
        if random.chance(98) { random.pick(&[PLAIN, NEED_REPLY]) } else { random.next() as u32 };
    let index = if random.chance(90) { random.below(2) } else { random.below(300) };
    let region = |random: &mut Random| {
        let size = random.pick(&[4096, 1 << 20, 40 << 20, 0, u64::MAX, 12_345]);
        let guest = random.pick(&[0, 0, 8 << 20, 1 << 40, u64::MAX - 4096]);
        let vmm = random.pick(&[VMM, VMM, VMM + (8 << 20), u64::MAX - 4096, 0]);
        let offset = random.pick(&[0, 0, 4096, 1, 1 << 50, u64::MAX]);
        [guest, size, vmm, offset]
    };
    let mut with = Vec::new();
    let body = match request {
        SET_MEM_TABLE => {
            let n = random.below(4);
            let mut body = words(&[if random.chance(90) { n } else { random.below(40) }]);
            for _ in 0..n {
                body.extend(words(&region(random)));
                with.push(fds.pick(random));
            }
            body
        }
        ADD_MEM_REG | 38 => {
            with.push(fds.pick(random));
            [words(&[0]), words(&region(random))].concat()
        }
        SET_VRING_KICK | SET_VRING_CALL | SET_VRING_ERR => {
            if random.chance(90) {
                with.push(fds.pick(random));
                words(&[index])
            } else {
                words(&[index | 0x100])
            }
        }
        SET_VRING_ADDR => {
            let at = |random: &mut Random| VMM + 16 * random.below(0x2_0000);
            let mut body = state(index as u32, 0);
            body.extend(words(&[at(random), at(random), at(random), 0]));
            body
        }
        2 => words(&[if random.chance(70) { features::ALL } else { random.next() }]),
        16 => words(&[random.pick(&[0xa238, 0x8, 0xffff, 0])]),
        8 => state(index as u32, random.pick(&[256, 1, 3, 0, 65_536, 1024])),
        10 => state(index as u32, random.below(70_000) as u32),
        11 | 18 => state(index as u32, random.below(3) as u32),
        1 | 3 | 4 | 15 | 17 | 34 | 36 => Vec::new(),
        _ => (0..random.below(100)).map(|_| random.next() as u8).collect(),
    };
    if random.chance(3) {
        with.extend((0..random.below(40)).map(|_| fds.pick(random)));
    }
    (message(request, flags, &body), with)
}

#[test]
fn garbage_in_messages_is_survived() {
    let memory = common::driver::Memory::new(&[(0, 40 << 20)]);
    let small = common::driver::Memory::new(&[(0, 4096)]);
    let (socket, other) = UnixStream::pair().expect("pair");
    other.set_nonblocking(true).expect("nonblocking");
    let fds = Fds {
        memory: memory.file.try_clone().expect("dup"),
        small: small.file.try_clone().expect("dup"),
        event: EventFd::new(libc::EFD_NONBLOCK).expect("eventfd"),
        null: File::options().read(true).write(true).open("/dev/null").expect("null"),
        socket,
        _other: other,
    };
    for seed in 1..=4 {
        let mut random = Random::new(seed);
        let mut m = Machine::silent(Options::default());
        let (mut sessions, mut running) = (1, 0);
        for round in 0..20_000 {
            let (mut bytes, with) = random_message(&mut random, &fds);
            if random.chance(1) {
                let keep = random.below(bytes.len() as u64) as usize;
                bytes.truncate(keep.max(1));
            }
            use vmm_sys_util::sock_ctrl_msg::ScmSocket;
            let sent = m.front.stream.send_with_fds(&[&bytes[..]], &with);
            m.pump();
            while m.front.reply().is_some() {}
            receive_some(&mut m);
            send(&mut m.link, &mut random);
            running += u32::from(m.link.features() != 0);
            if sent.is_err() || !m.link.is_connected() || random.chance(1) {
                let (ours, theirs) = UnixStream::pair().expect("pair");
                let settings = m.options.settings;
                m.link = VhostLink::connected(theirs, Rc::clone(&m.epoll), settings).expect("link");
                m.front = FrontEnd::new(ours);
                sessions += 1;
                if random.chance(50) {
                    m.tx.reset();
                    m.rx.reset();
                    m.boot();
                }
            }
            // What the kernel may have written into our descriptors is no one's business.
            let _ = fds.event.read();
            assert!(round < 20_000);
        }
        assert!(sessions > 10 && running > 1000, "seed {seed}: {sessions}, {running}");
    }
}

/// Takes a few batches.
fn receive_some(m: &mut Machine) {
    let (source, _) = m.link.halves();
    for _ in 0..4 {
        if source.receive().expect("receive") == 0 {
            return;
        }
        source.release();
    }
}

#[test]
fn a_stream_of_random_bytes_ends_the_session() {
    for seed in 1..=200 {
        let mut random = Random::new(seed);
        let mut m = Machine::silent(Options::default());
        let bytes: Vec<u8> = (0..4096).map(|_| random.next() as u8).collect();
        (&m.front.stream).write_all(&bytes).expect("sent");
        assert!(m.pump().ended, "seed {seed}");
    }
}

/// A VMM that shrinks the file of the guest's memory: the mapping stays, the bytes are gone.
#[test]
fn memory_that_is_taken_away_ends_the_client_and_nobody_else() {
    let mut m = Machine::new(Options::default());
    let mut other = Machine::new(Options::default());
    m.rx.add(&[common::driver::Buffer { addr: BUFFERS, len: 2048, flags: WRITE }]);
    m.rx.publish();
    m.tx.publish();
    m.pump();
    let (source, sink) = m.link.halves();
    let slot = sink.reserve(100).expect("room");
    m.memory.file.set_len(0).expect("shrinks");
    // From here on the driver's own mapping must not be touched.
    sink.write(&slot, 0, &[1; 100]);
    sink.commit(slot, 100, Offload::default());
    sink.flush().expect("goes nowhere");
    source.receive().expect("finds zeros");
    source.release();
    assert!(m.link.is_connected());
    m.tx.kick.write(1).expect("an event");
    assert!(m.pump().ended, "the only client is gone");
    assert!(!m.link.is_connected());

    other.tx.kick.write(1).expect("an event");
    assert!(!other.pump().ended);
    assert!(other.link.is_connected(), "its memory is all there");
}
