//! Messages to the vhost-user device: the order real front-ends send them in, and what hostile or
//! broken ones could send.

mod common;

use common::driver::{DriverRing, Memory, VMM, out, room};
use common::frontend::*;
use passt::link::vhost::{Settings, VhostLink, features};
use passt::link::{Link, LinkEvents, Offload, Refused, Sink, Source};
use passt::sys::epoll::Epoll;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::rc::Rc;
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::tempdir::TempDir;

/// A machine that has negotiated features and shared its memory.
fn prepared() -> Machine {
    let mut m = Machine::silent(Options::default());
    m.negotiate();
    m.share_memory();
    m
}

/// Puts a frame into the transmit ring, and returns how many arrive.
fn send_one(m: &mut Machine) -> usize {
    m.memory.write_fast(BUFFERS, &[0; 80]);
    m.tx.add(&[out(BUFFERS, 72)]);
    m.tx.publish();
    m.pump();
    let n = frames(&mut m.link);
    m.tx.all_used();
    n
}

/// Takes and releases all frames; returns how many.
fn frames(link: &mut VhostLink) -> usize {
    let (source, _) = link.halves();
    let mut all = 0;
    loop {
        match source.receive().expect("receive") {
            0 => return all,
            n => all += n,
        }
        source.release();
    }
}

/// Sends a frame of 100 bytes to the guest.
fn deliver(link: &mut VhostLink) -> Result<(), Refused> {
    let (_, sink) = link.halves();
    let slot = sink.reserve(100)?;
    sink.write(&slot, 0, &[7; 100]);
    sink.commit(slot, 100, Offload::default());
    sink.flush().expect("flush");
    Ok(())
}

#[test]
fn qemu_enables_rings_before_it_sets_features() {
    let mut m = Machine::silent(Options::default());
    let offered = m.get(GET_FEATURES, &[]).value();
    let protocol = m.get(GET_PROTOCOL_FEATURES, &[]).value();
    m.say(SET_PROTOCOL_FEATURES, &words(&[protocol]), &[]);
    assert_eq!(m.get(GET_QUEUE_NUM, &[]).value(), 1);
    assert_eq!(m.get(GET_MAX_MEM_SLOTS, &[]).value(), 64);
    m.say(SET_OWNER, &[], &[]);
    for index in [0, 1, 0, 1] {
        assert_eq!(m.ask(SET_VRING_ENABLE, &state(index, 1), &[]), 0);
    }
    assert_eq!(m.ask(SET_VRING_ENABLE, &state(2, 1), &[]), 1, "no such ring");
    assert_eq!(m.ask(SET_VRING_ENABLE, &state(0, 2), &[]), 1, "neither on nor off");
    assert_eq!(m.ask(SET_FEATURES, &words(&[offered]), &[]), 0);
    m.options.slots = true;
    m.share_memory();
    m.start_ring(0);
    m.start_ring(1);
    assert_eq!(send_one(&mut m), 1);
}

#[test]
fn the_offer_is_masked_by_the_settings() {
    let settings =
        Settings { features: !features::MRG_RXBUF, protocol_features: CONFIG, mtu: None };
    let mut m = Machine::silent(Options { settings, ..Options::default() });
    let offered = m.get(GET_FEATURES, &[]).value();
    assert_eq!(offered, features::ALL & !features::MRG_RXBUF & !features::MTU);
    assert_eq!(m.get(GET_PROTOCOL_FEATURES, &[]).value(), CONFIG | REPLY_ACK);
}

#[test]
fn the_configuration_space_has_link_and_mtu() {
    let mut m = prepared();
    let request = |offset: u32, size: u32| {
        let mut body = state(offset, size);
        body.extend(0u32.to_ne_bytes());
        body.resize(12 + size as usize, 0);
        body
    };
    let reply = m.get(GET_CONFIG, &request(0, 12)).body;
    assert_eq!(reply[12..], [0, 0, 0, 0, 0, 0, 1, 0, 1, 0, 0xf0, 0xff]);
    let reply = m.get(GET_CONFIG, &request(10, 2)).body;
    assert_eq!(reply[12..], [0xf0, 0xff]);
    let reply = m.get(GET_CONFIG, &request(250, 7)).body;
    assert_eq!(reply.len(), 12, "beyond the end: an empty payload");
    assert_eq!(m.ask(SET_CONFIG, &request(0, 6), &[]), 1, "read-only");
}

#[test]
fn a_message_in_pieces_waits_for_its_end() {
    let mut m = prepared();
    let kick = m.tx.kick.as_raw_fd();
    m.start_ring(0);
    for (request, body, fds) in [
        (SET_VRING_NUM, state(1, 256), vec![]),
        (SET_VRING_BASE, state(1, 0), vec![]),
        (SET_VRING_ADDR, ring_addr(1, &m.tx), vec![]),
        (SET_VRING_KICK, words(&[1]), vec![kick]),
        (SET_VRING_ENABLE, state(1, 1), vec![]),
    ] {
        let bytes = message(request, NEED_REPLY, &body);
        // Descriptors belong to the header; without them it may come in pieces, too.
        let (first, rest) = bytes.split_at(if fds.is_empty() { 1 } else { 12 });
        m.front.send_raw(first, &fds);
        for byte in rest {
            m.pump();
            assert!(m.front.reply().is_none(), "request {request}");
            m.front.send_raw(&[*byte], &[]);
        }
        m.pump();
        assert_eq!(m.front.reply().expect("reply").value(), 0, "request {request}");
    }
    assert_eq!(send_one(&mut m), 1);
}

#[test]
fn several_messages_in_one_piece_are_all_handled() {
    let mut m = prepared();
    let once = message(GET_FEATURES, PLAIN, &[]);
    m.front.send_raw(&once.repeat(100), &[]);
    m.pump();
    for _ in 0..100 {
        assert_eq!(m.front.reply().expect("reply").request, GET_FEATURES);
    }
}

#[test]
fn a_client_that_goes_in_the_middle_of_a_message_is_gone() {
    let mut m = prepared();
    m.front.send_raw(&message(SET_VRING_NUM, PLAIN, &state(0, 256))[..17], &[]);
    assert_eq!(m.pump(), LinkEvents::default());
    let (fresh, _other) = UnixStream::pair().expect("pair");
    m.front = FrontEnd::new(fresh);
    assert!(m.pump().ended);
    assert!(!m.link.is_connected());
}

#[test]
fn unknown_requests_are_refused_and_the_session_goes_on() {
    let mut m = Machine::new(Options::default());
    for request in [0, 7, 22, 23, 26, 27, 28, 29, 30, 35, 39, 40, 45, 100, 0x8000_0000, u32::MAX] {
        let fd = m.rx.kick.as_raw_fd();
        assert_eq!(m.ask(request, &[0; 40], &[fd]), 1, "{request}");
        m.say(request, &[0; 40], &[]);
        assert_eq!(m.front.reply(), None, "{request}: no reply was asked for");
    }
    for (request, body) in [(SEND_RARP, words(&[0])), (NET_SET_MTU, words(&[1500]))] {
        assert_eq!(m.ask(request, &body, &[]), 0, "{request}");
        m.say(request, &body, &[]);
        assert_eq!(m.front.reply(), None);
    }
    assert_eq!(m.ask(NET_SET_MTU, &[0; 4], &[]), 1);
    assert_eq!(send_one(&mut m), 1);
    assert!(m.link.stats().refused_messages >= 33);
}

#[test]
fn messages_that_break_the_stream_end_the_session() {
    let oversize = {
        let mut bytes = message(GET_FEATURES, PLAIN, &[]);
        bytes[8..12].copy_from_slice(&4097u32.to_ne_bytes());
        bytes
    };
    let cases: &[(&str, Vec<u8>)] = &[
        ("a body of more than 4096 bytes", oversize),
        ("version 2", message(GET_FEATURES, 2, &[])),
        ("a reply", message(GET_FEATURES, 5, &[])),
        ("reserved flags", message(GET_FEATURES, 0x11, &[])),
        ("a body where there is none", message(GET_FEATURES, PLAIN, &[0; 8])),
        ("half a body", message(SET_VRING_NUM, PLAIN, &[0; 4])),
        ("a base of a ring that is not there", message(GET_VRING_BASE, PLAIN, &state(7, 0))),
    ];
    for (name, bytes) in cases {
        let mut m = Machine::new(Options::default());
        m.front.send_raw(bytes, &[]);
        let events = m.pump();
        assert!(events.ended && !m.link.is_connected(), "{name}");
        assert!(m.front.is_closed(), "{name}");
        assert_eq!(frames(&mut m.link), 0);
        assert_eq!(deliver(&mut m.link), Err(Refused::Down));
    }
}

#[test]
fn nonsense_about_rings_is_refused_and_the_session_goes_on() {
    let mut m = prepared();
    let kick = m.tx.kick.as_raw_fd();
    let file = m.memory.file.as_raw_fd();
    let cases: &[(&str, u32, Vec<u8>, Vec<i32>)] = &[
        ("size 0", SET_VRING_NUM, state(0, 0), vec![]),
        ("size 3", SET_VRING_NUM, state(0, 3), vec![]),
        ("size 65536", SET_VRING_NUM, state(0, 65_536), vec![]),
        ("size of ring 2", SET_VRING_NUM, state(2, 256), vec![]),
        ("size of a ring far off", SET_VRING_NUM, state(u32::MAX, 256), vec![]),
        ("base beyond 16 bits", SET_VRING_BASE, state(0, 65_536), vec![]),
        ("base of ring 2", SET_VRING_BASE, state(2, 0), vec![]),
        ("kick of ring 2", SET_VRING_KICK, words(&[2]), vec![kick]),
        ("call of ring 255", SET_VRING_CALL, words(&[255]), vec![kick]),
        ("err of ring 2", SET_VRING_ERR, words(&[2]), vec![kick]),
        ("a kick to be polled", SET_VRING_KICK, words(&[0x100]), vec![]),
        ("a kick that is a file", SET_VRING_KICK, words(&[0]), vec![file]),
        ("a kick without size and place", SET_VRING_KICK, words(&[0]), vec![kick]),
    ];
    for (name, request, body, fds) in cases {
        assert_eq!(m.ask(*request, body, fds), 1, "{name}");
    }
    m.start_rings();
    assert_eq!(send_one(&mut m), 1);
}

#[test]
fn a_ring_must_lie_in_one_region() {
    let edge = (8u64 << 20) + VMM;
    let good = RX_RING + VMM;
    for (name, table, used, available) in [
        ("table across regions", edge - 4080, good, good),
        ("driver area across regions", good, good, edge - 516),
        ("device area across regions", good, edge - 2052, good),
        ("table in no region", 16, good, good),
        ("end of the address space", u64::MAX - 15, good, good),
    ] {
        let mut m = prepared();
        assert_eq!(m.ask(SET_VRING_NUM, &state(0, 256), &[]), 0);
        let mut body = state(0, 0);
        body.extend(words(&[table, used, available, 0]));
        m.say(SET_VRING_ADDR, &body, &[]);
        let kick = m.rx.kick.as_raw_fd();
        assert_eq!(m.ask(SET_VRING_KICK, &words(&[0]), &[kick]), 1, "{name}");
        m.say(SET_VRING_ENABLE, &state(0, 1), &[]);
        assert_eq!(deliver(&mut m.link), Err(Refused::Down), "{name}");
    }
}

#[test]
fn addresses_out_of_step_end_the_session() {
    for (table, used, available) in [(8, 0, 0), (0, 2, 0), (0, 0, 1)] {
        let mut m = Machine::new(Options::default());
        let at = RX_RING + VMM;
        let mut body = state(0, 0);
        body.extend(words(&[at + table, at + used, at + available, 0]));
        assert!(m.say(SET_VRING_ADDR, &body, &[]).ended, "{table} {used} {available}");
    }
}

#[test]
fn descriptors_inside_of_a_header_end_the_session() {
    let mut m = prepared();
    let bytes = message(SET_VRING_KICK, PLAIN, &words(&[0]));
    let kick = m.rx.kick.as_raw_fd();
    m.front.send_raw(&bytes[..5], &[kick]);
    assert!(!m.pump().ended);
    m.front.send_raw(&bytes[5..], &[]);
    assert!(m.pump().ended);
}

#[test]
fn a_ring_that_is_not_in_memory_signals_its_err_descriptor() {
    let mut m = Machine::new(Options::default());
    assert!(m.rx.err.read().is_err());
    // Only the last region stays: both rings are gone.
    let r = &m.memory.regions[2];
    let mut body = words(&[1]);
    body.extend(words(&[r.guest, r.size, r.guest + VMM, r.offset]));
    assert_eq!(m.ask(SET_MEM_TABLE, &body, &[m.memory.file.as_raw_fd()]), 0);
    assert_eq!(m.rx.err.read().expect("signalled"), 1);
    assert_eq!(m.tx.err.read().expect("signalled"), 1);
    assert_eq!(deliver(&mut m.link), Err(Refused::Down));
    assert_eq!(frames(&mut m.link), 0);
    m.share_memory();
    assert_eq!(send_one(&mut m), 1, "and comes back with the memory");
}

#[test]
fn nonsense_about_memory_is_refused_and_the_old_table_stays() {
    let mut m = Machine::new(Options::default());
    let fd = m.memory.file.as_raw_fd();
    let region = |guest: u64, size: u64, vmm: u64, offset: u64| words(&[guest, size, vmm, offset]);
    let table = |n: u64, regions: &[Vec<u8>]| [words(&[n]), regions.concat()].concat();
    let good = region(0, 4096, VMM, 0);
    let cases: &[(&str, Vec<u8>, usize)] = &[
        ("no region", table(0, &[]), 0),
        ("more regions than descriptors", table(2, &[good.clone(), good.clone()]), 1),
        ("more descriptors than regions", table(1, std::slice::from_ref(&good)), 2),
        ("more regions than body", table(3, std::slice::from_ref(&good)), 3),
        ("a region twice", table(2, &[good.clone(), good.clone()]), 2),
        ("no bytes", table(1, &[region(0, 0, VMM, 0)]), 1),
        ("guest addresses wrap", table(1, &[region(u64::MAX, 4096, VMM, 0)]), 1),
        ("VMM addresses wrap", table(1, &[region(0, 4096, u64::MAX, 0)]), 1),
        ("offsets wrap", table(1, &[region(0, 4096, VMM, u64::MAX)]), 1),
        ("past the end of the file", table(1, &[region(0, 1 << 40, VMM, 0)]), 1),
        ("nothing at all", vec![], 0),
    ];
    let before = m.memory.descriptors();
    for (name, body, fds) in cases {
        assert_eq!(m.ask(SET_MEM_TABLE, body, &vec![fd; *fds]), 1, "{name}");
    }
    for (name, body, fds) in &cases[5..10] {
        let body = [words(&[0]), body[8..].to_vec()].concat();
        // The crate's handler checks these itself, and does not answer all of them.
        m.front.send(ADD_MEM_REG, NEED_REPLY, &body, &vec![fd; *fds]);
        m.pump();
        while m.front.reply().is_some() {}
        assert!(m.link.is_connected(), "{name}");
    }
    let body = [words(&[0]), region(1 << 40, 4096, VMM, 0)].concat();
    assert_eq!(m.ask(REM_MEM_REG, &body, &[]), 1, "no such region");
    assert_eq!(m.memory.descriptors(), before, "no descriptor stays behind");
    assert_eq!(send_one(&mut m), 1);
}

#[test]
fn regions_come_and_go_one_by_one() {
    let mut m = Machine::new(Options { slots: true, ..Options::default() });
    assert_eq!(send_one(&mut m), 1);
    let r = &m.memory.regions[2];
    let far = r.guest;
    let body = words(&[0, r.guest, r.size, r.guest + VMM, r.offset]);
    m.tx.add(&[out(far, 72)]);
    m.tx.publish();
    m.pump();
    assert_eq!(frames(&mut m.link), 1);
    assert_eq!(m.ask(REM_MEM_REG, &body, &[]), 0);
    m.tx.add(&[out(far, 72)]);
    m.tx.publish();
    m.pump();
    frames(&mut m.link);
    use passt::link::vhost::Malformed;
    assert_eq!(m.link.stats().malformed(Malformed::Unmapped), 1, "no longer mapped");
    assert_eq!(m.ask(ADD_MEM_REG, &body, &[m.memory.file.as_raw_fd()]), 0);
    m.tx.add(&[out(far, 72)]);
    m.tx.publish();
    m.pump();
    assert_eq!(frames(&mut m.link), 1);
    assert_eq!(m.link.stats().malformed(Malformed::Unmapped), 1);
}

#[test]
fn the_memory_table_may_change_under_load() {
    let mut m = Machine::new(Options::default());
    for n in 0..100 {
        m.rx.add(&[room(BUFFERS + n * 2048, 2048)]);
        m.tx.add(&[out(BUFFERS + n * 2048, 100)]);
    }
    m.rx.publish();
    for round in 0..20 {
        m.tx.publish();
        m.pump();
        // A batch is held, a frame is committed, others are open, when the table changes.
        let (source, sink) = m.link.halves();
        assert!(source.receive().expect("receive") > 0);
        let first = sink.reserve(100).expect("room");
        let second = sink.reserve(100).expect("room");
        let third = sink.reserve(100).expect("room");
        sink.write(&first, 0, &[9; 100]);
        sink.commit(first, 100, Offload::default());
        m.share_memory();
        let (source, sink) = m.link.halves();
        assert!(source.frame(0).spans.is_empty(), "the batch went back");
        source.release();
        sink.write(&second, 0, &[1; 100]);
        sink.commit(second, 100, Offload::default());
        sink.cancel(third);
        sink.flush().expect("flush");
        // What was committed is there, and nothing else.
        let [(head, 112)] = m.rx.all_used()[..] else { panic!("one frame, round {round}") };
        m.rx.add(&[room(BUFFERS + u64::from(head) * 2048, 2048)]);
        m.rx.publish();
        for (head, len) in m.tx.all_used() {
            assert_eq!(len, 0);
            m.tx.add(&[out(BUFFERS + u64::from(head) * 2048, 100)]);
        }
        deliver(&mut m.link).expect("room");
        let [(head, 112)] = m.rx.all_used()[..] else { panic!("one frame, round {round}") };
        m.rx.add(&[room(BUFFERS + u64::from(head) * 2048, 2048)]);
        m.rx.publish();
    }
}

#[test]
fn a_new_kick_descriptor_replaces_the_old_one() {
    let mut m = Machine::new(Options::default());
    assert_eq!(send_one(&mut m), 1);
    // The same open file again, then another one.
    let same = m.tx.kick.as_raw_fd();
    assert_eq!(m.ask(SET_VRING_KICK, &words(&[1]), &[same]), 0);
    assert_eq!(send_one(&mut m), 1);
    let fresh = EventFd::new(0).expect("eventfd");
    assert_eq!(m.ask(SET_VRING_KICK, &words(&[1]), &[fresh.as_raw_fd()]), 0);
    m.pump();
    m.tx.kick.write(1).expect("kick");
    assert!(!m.pump().frames, "the old one is watched no more");
    m.tx.kick = fresh;
    assert_eq!(send_one(&mut m), 1);
    assert_eq!(send_one(&mut m), 1);
}

#[test]
fn a_kick_is_never_read_and_each_one_wakes() {
    let mut m = Machine::new(Options::default());
    for n in 1..=5 {
        m.tx.kick.write(1).expect("kick");
        assert!(m.pump().frames, "{n}");
        assert!(!m.pump().frames, "once");
        m.rx.kick.write(1).expect("kick");
        assert!(m.pump().room);
    }
    assert!(m.tx.kick.read().expect("count") >= 5);
}

#[test]
fn rings_stop_and_start_again_at_their_base() {
    let mut m = Machine::new(Options::default());
    for round in 0..5u32 {
        assert_eq!(send_one(&mut m), 1);
        m.rx.add(&[room(BUFFERS, 2048)]);
        m.rx.publish();
        deliver(&mut m.link).expect("room");
        m.rx.all_used();
        assert_eq!(m.stop_ring(0), round + 1);
        assert_eq!(m.stop_ring(1), round + 1);
        assert_eq!(deliver(&mut m.link), Err(Refused::Down));
        m.tx.add(&[out(BUFFERS, 72)]);
        m.tx.publish();
        assert!(!m.pump().frames, "the kick is watched no more");
        assert_eq!(frames(&mut m.link), 0);
        m.rx.was_called();
        let events = m.start_rings();
        assert!(events.up && events.frames && events.room);
        assert!(m.rx.was_called());
        assert_eq!(frames(&mut m.link), 1, "what was sent meanwhile");
        m.tx.all_used();
        assert_eq!(m.stop_ring(1), round + 2);
        assert_eq!(m.stop_ring(0), round + 1);
        // As after a reset of the guest: from 0, and up to where this round began.
        m.tx.reset();
        m.rx.reset();
        m.start_rings();
        for _ in 0..=round {
            assert_eq!(send_one(&mut m), 1);
            m.rx.add(&[room(BUFFERS, 2048)]);
            m.rx.publish();
            deliver(&mut m.link).expect("room");
            m.rx.all_used();
        }
    }
}

#[test]
fn a_restart_within_one_event_is_noticed() {
    let mut m = Machine::new(Options::default());
    m.front.send(GET_VRING_BASE, PLAIN, &state(1, 0), &[]);
    m.front.send(GET_VRING_BASE, PLAIN, &state(0, 0), &[]);
    for (index, ring) in [(0, &m.rx), (1, &m.tx)] {
        let fds = [ring.kick.as_raw_fd()];
        m.front.send(SET_VRING_BASE, PLAIN, &state(index, 0), &[]);
        m.front.send(SET_VRING_KICK, PLAIN, &words(&[u64::from(index)]), &fds);
    }
    let events = m.pump();
    assert!(events.up && events.room && events.frames);
    let events = m.say(SET_VRING_ENABLE, &state(0, 1), &[]);
    assert!(!events.up && !events.frames, "it was told already");
}

#[test]
fn a_reset_device_starts_from_nothing() {
    let mut m = Machine::new(Options::default());
    assert_eq!(send_one(&mut m), 1);
    assert_eq!(m.ask(RESET_DEVICE, &[], &[]), 0);
    assert_eq!(deliver(&mut m.link), Err(Refused::Down));
    m.tx.reset();
    m.rx.reset();
    assert!(m.start_rings().up);
    assert_eq!(send_one(&mut m), 1);
}

#[test]
fn a_disabled_ring_carries_nothing_until_enabled() {
    let mut m = Machine::new(Options::default());
    m.rx.add(&[room(BUFFERS, 2048)]);
    m.rx.publish();
    assert_eq!(m.ask(SET_VRING_ENABLE, &state(0, 0), &[]), 0);
    assert_eq!(m.ask(SET_VRING_ENABLE, &state(1, 0), &[]), 0);
    assert_eq!(deliver(&mut m.link), Err(Refused::Down));
    let events = m.say(SET_VRING_ENABLE, &state(0, 1), &[]);
    assert!(events.up && events.room);
    assert!(m.say(SET_VRING_ENABLE, &state(1, 1), &[]).frames);
    assert_eq!(send_one(&mut m), 1);
    deliver(&mut m.link).expect("room");
}

/// Takes and releases all batches; returns the bytes of frames in them, of which a discarded one
/// has none.
fn bytes(link: &mut VhostLink) -> usize {
    let (source, _) = link.halves();
    let mut all = 0;
    loop {
        let n = source.receive().expect("receive");
        if n == 0 {
            return all;
        }
        all += (0..n).map(|i| source.frame(i).len).sum::<usize>();
        source.release();
    }
}

#[test]
fn frames_on_a_started_but_disabled_ring_are_taken_and_discarded() {
    let mut m = Machine::new(Options::default());
    let send = |m: &mut Machine| {
        m.memory.write_fast(BUFFERS, &[0; 80]);
        m.tx.add(&[out(BUFFERS, 72)]);
        m.tx.publish();
    };
    // Disabled while one waits: it goes, and so do those that are kicked later.
    send(&mut m);
    let events = m.say(SET_VRING_ENABLE, &state(1, 0), &[]);
    assert!(events.frames, "to be discarded");
    assert_eq!(bytes(&mut m.link), 0);
    assert_eq!(m.tx.all_used().len(), 1, "it is given back");
    for _ in 0..300 {
        send(&mut m);
        assert!(m.pump().frames);
        assert_eq!(bytes(&mut m.link), 0);
        assert_eq!(m.tx.all_used(), [(0, 0)]);
    }
    assert_eq!(m.link.stats().disabled_frames, 301);
    m.say(SET_VRING_ENABLE, &state(1, 1), &[]);
    send(&mut m);
    assert!(m.pump().frames);
    assert_eq!(bytes(&mut m.link), 60);
    assert_eq!(m.tx.all_used().len(), 1);
    assert_eq!(m.link.stats().disabled_frames, 301);
    // A ring that is not started is left alone.
    m.say(SET_VRING_ENABLE, &state(1, 0), &[]);
    m.stop_ring(1);
    send(&mut m);
    assert_eq!(bytes(&mut m.link), 0);
    assert!(m.tx.all_used().is_empty());
}

#[test]
fn without_protocol_features_rings_are_born_enabled() {
    let features = features::ALL & !features::PROTOCOL_FEATURES;
    let mut m = Machine::new(Options { features, ..Options::default() });
    assert_eq!(send_one(&mut m), 1);
}

#[test]
fn features_that_we_cannot_honour_stop_the_rings() {
    let mut m = Machine::new(Options::default());
    for bad in [features::ALL & !features::VERSION_1, features::ALL | 1 << 34, u64::MAX] {
        assert_eq!(m.ask(SET_FEATURES, &words(&[bad]), &[]), 1, "{bad:x}");
        assert_eq!(m.link.features(), 0);
        assert_eq!(deliver(&mut m.link), Err(Refused::Down));
        assert_eq!(m.ask(SET_FEATURES, &words(&[features::ALL]), &[]), 0);
        assert_eq!(send_one(&mut m), 1);
    }
    assert_eq!(m.ask(SET_PROTOCOL_FEATURES, &words(&[REPLY_ACK | 1 << 40]), &[]), 1);
}

#[test]
fn offloads_without_checksums_are_not_in_force() {
    let all = features::ALL & !features::CSUM & !features::GUEST_CSUM;
    let m = Machine::new(Options { features: all, ..Options::default() });
    let segmentation = features::GUEST_TSO4 | features::HOST_TSO4 | features::HOST_USO;
    assert_eq!(m.link.features() & segmentation, 0);
}

#[test]
fn the_channel_for_our_requests_is_taken_and_kept() {
    let mut m = Machine::new(Options::default());
    let (ours, theirs) = UnixStream::pair().expect("pair");
    assert_eq!(m.ask(SET_BACKEND_REQ_FD, &[], &[theirs.as_raw_fd()]), 0);
    drop(theirs);
    (&ours).write_all(b"x").expect("its other end is open");
    let file = m.memory.file.as_raw_fd();
    assert_eq!(m.ask(SET_BACKEND_REQ_FD, &[], &[file]), 1, "no socket");
}

#[test]
fn a_front_end_that_reads_no_replies_is_dropped_instead_of_waited_for() {
    let mut m = Machine::new(Options::default());
    for _ in 0..10_000 {
        m.front.send(GET_FEATURES, PLAIN, &[], &[]);
        if m.pump().ended {
            return;
        }
    }
    panic!("still served");
}

#[test]
fn descriptors_that_nobody_asked_for_are_closed() {
    let mut m = Machine::new(Options::default());
    let before = m.memory.descriptors();
    let fd = m.memory.file.as_raw_fd();
    for n in [1, 8, 32] {
        assert_eq!(m.ask(NET_SET_MTU, &words(&[9000]), &vec![fd; n]), 0);
        assert_eq!(m.ask(99, &[], &vec![fd; n]), 1);
    }
    assert_eq!(m.memory.descriptors(), before);
}

#[test]
fn more_descriptors_than_a_message_may_carry_end_the_session() {
    for (request, body) in
        [(SET_VRING_CALL, words(&[0])), (SET_MEM_TABLE, words(&[1])), (99, vec![])]
    {
        for n in [33, 253] {
            let mut m = Machine::new(Options::default());
            let fd = m.memory.file.as_raw_fd();
            let before = m.memory.descriptors();
            assert!(m.say(request, &body, &vec![fd; n]).ended, "{request}, {n}");
            assert!(m.memory.descriptors() < before, "none stays, the regions' neither");
        }
    }
}

#[test]
fn one_client_at_a_time_and_the_next_after_it() {
    let dir = TempDir::new_with_prefix("/tmp/passt-test").expect("directory");
    let path = dir.as_path().join("socket");
    let epoll = Rc::new(Epoll::new().expect("epoll"));
    let listener = UnixListener::bind(&path).expect("bind");
    let settings = Settings::default();
    let link = VhostLink::listen(listener, false, Rc::clone(&epoll), settings).expect("link");
    let mut m = Machine::silent(Options::default());
    (m.link, m.epoll) = (link, epoll);
    let before = m.memory.descriptors();
    for round in 0..5 {
        m.front = FrontEnd::new(UnixStream::connect(&path).expect("connect"));
        m.pump();
        assert!(m.link.is_connected());
        let mut second = FrontEnd::new(UnixStream::connect(&path).expect("connect"));
        m.pump();
        assert!(second.is_closed(), "round {round}");
        m.tx.reset();
        m.rx.reset();
        assert!(m.boot().up);
        assert_eq!(send_one(&mut m), 1);
        // Gone in the middle of everything.
        m.rx.add(&[room(BUFFERS, 2048)]);
        m.rx.publish();
        m.tx.add(&[out(BUFFERS, 72)]);
        m.tx.publish();
        let (_, sink) = m.link.halves();
        let open = sink.reserve(100).expect("room");
        m.front = FrontEnd::new(UnixStream::pair().expect("pair").0);
        let events = m.pump();
        assert!(!events.ended && !m.link.is_connected());
        let (source, sink) = m.link.halves();
        sink.write(&open, 0, &[1; 100]);
        sink.commit(open, 100, Offload::default());
        sink.flush().expect("flush");
        assert_eq!(source.receive().expect("receive"), 0);
        assert_eq!(m.link.features(), 0);
    }
    assert_eq!(m.link.stats().dropped_clients, 5);
    assert_eq!(m.memory.descriptors(), before, "nothing stays open");
}

#[test]
fn a_one_off_listener_ends_with_its_first_client() {
    let dir = TempDir::new_with_prefix("/tmp/passt-test").expect("directory");
    let path = dir.as_path().join("socket");
    let epoll = Rc::new(Epoll::new().expect("epoll"));
    let listener = UnixListener::bind(&path).expect("bind");
    let settings = Settings::default();
    let mut link = VhostLink::listen(listener, true, Rc::clone(&epoll), settings).expect("link");
    assert!(!pump(&epoll, &mut link).ended);
    let client = UnixStream::connect(&path).expect("connect");
    assert!(!pump(&epoll, &mut link).ended);
    drop(client);
    assert!(pump(&epoll, &mut link).ended);
}

#[test]
fn an_event_of_a_client_that_has_gone_does_not_touch_the_next() {
    use passt::token::Readiness;
    let dir = TempDir::new_with_prefix("/tmp/passt-test").expect("directory");
    let path = dir.as_path().join("socket");
    let epoll = Rc::new(Epoll::new().expect("epoll"));
    let listener = UnixListener::bind(&path).expect("bind");
    let settings = Settings::default();
    let mut link = VhostLink::listen(listener, false, Rc::clone(&epoll), settings).expect("link");
    for _ in 0..2 {
        let client = UnixStream::connect(&path).expect("connect");
        pump(&epoll, &mut link);
        drop(client);
        pump(&epoll, &mut link);
    }
    let _third = UnixStream::connect(&path).expect("connect");
    pump(&epoll, &mut link);
    assert!(link.is_connected());
    let gone = Readiness { readable: true, hung_up: true, read_closed: true, ..Default::default() };
    for old in 0x101..0x103 {
        link.on_event(old, gone).expect("event");
    }
    link.on_event(0xdead_beef, gone).expect("event");
    assert!(link.is_connected());
}

#[test]
fn the_vhost_crates_front_end_is_served() {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use vhost::vhost_user::{Frontend, VhostUserFrontend, VhostUserProtocolFeatures};
    use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
    let (ours, theirs) = UnixStream::pair().expect("pair");
    let memory = Memory::new(&[(0, 4 << 20)]);
    let done = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&done);
    let front_end = std::thread::spawn(move || {
        let mut front = Frontend::from_stream(ours, 2);
        front.set_owner().expect("owner");
        let features = front.get_features().expect("features");
        let protocol = front.get_protocol_features().expect("protocol features");
        assert!(protocol.contains(VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS));
        front.set_protocol_features(protocol).expect("protocol features");
        front.set_features(features).expect("features");
        let region = VhostUserMemoryRegionInfo {
            guest_phys_addr: 0,
            memory_size: 4 << 20,
            userspace_addr: VMM,
            mmap_offset: 0,
            mmap_handle: memory.file.as_raw_fd(),
        };
        front.set_mem_table(&[region]).expect("memory");
        let ring = DriverRing::new(memory, TX_RING, 128);
        let config = VringConfigData {
            queue_max_size: 128,
            queue_size: 128,
            flags: 0,
            desc_table_addr: ring.descriptors + VMM,
            used_ring_addr: ring.used + VMM,
            avail_ring_addr: ring.available + VMM,
            log_addr: None,
        };
        front.set_vring_num(1, 128).expect("size");
        front.set_vring_base(1, 0).expect("base");
        front.set_vring_addr(1, &config).expect("addresses");
        front.set_vring_call(1, &ring.call).expect("call");
        front.set_vring_kick(1, &ring.kick).expect("kick");
        front.set_vring_enable(1, true).expect("enable");
        assert_eq!(front.get_max_mem_slots().expect("slots"), 64);
        assert_eq!(front.get_vring_base(1).expect("base"), 0);
        flag.store(true, Ordering::Release);
    });
    let epoll = Rc::new(Epoll::new().expect("epoll"));
    let link = VhostLink::connected(theirs, Rc::clone(&epoll), Settings::default());
    let mut link = link.expect("link");
    while !pump(&epoll, &mut link).ended {
        std::thread::yield_now();
    }
    front_end.join().expect("front-end");
    assert!(done.load(Ordering::Acquire));
}

#[test]
fn a_client_that_comes_before_the_last_words_of_the_one_before_are_read_is_the_next() {
    let dir = TempDir::new_with_prefix("/tmp/passt-test").expect("directory");
    let path = dir.as_path().join("socket");
    let connect = || FrontEnd::new(UnixStream::connect(&path).expect("connect"));
    for one_off in [false, true] {
        let epoll = Rc::new(Epoll::new().expect("epoll"));
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path).expect("bind");
        let settings = Settings::default();
        let link = VhostLink::listen(listener, one_off, Rc::clone(&epoll), settings);
        let mut link = link.expect("link");
        for words in [1, 63, 64, 65, 200] {
            let old = connect();
            pump(&epoll, &mut link);
            for _ in 0..words {
                old.send(SET_OWNER, PLAIN, &[], &[]);
            }
            drop(old);
            let (mut new, mut another) = (connect(), connect());
            let ended = pump(&epoll, &mut link).ended;
            assert_eq!(ended, one_off, "{words}");
            if ended {
                break; // with status 0, whoever else has come
            }
            assert!(another.is_closed(), "{words}: there is one place");
            assert!(!new.is_closed(), "{words}");
            new.send(GET_FEATURES, PLAIN, &[], &[]);
            pump(&epoll, &mut link);
            assert!(new.reply().is_some(), "{words}");
            drop(new);
            pump(&epoll, &mut link);
            assert!(!link.is_connected());
        }
    }
}

/// Notes what each thread logs.
struct Lines;

thread_local! {
    static LINES: std::cell::RefCell<Vec<String>> = const { std::cell::RefCell::new(Vec::new()) };
}

impl log::Log for Lines {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        LINES.with(|lines| lines.borrow_mut().push(record.args().to_string()));
    }

    fn flush(&self) {}
}

#[test]
fn a_guest_that_breaks_its_rings_again_and_again_does_not_fill_the_log() {
    log::set_logger(&Lines).expect("there is no other");
    log::set_max_level(log::LevelFilter::Info);
    let said = |words: &str| {
        LINES.with(|lines| lines.borrow().iter().filter(|line| line.contains(words)).count())
    };
    let mut m = Machine::new(Options::default());
    for round in 1..=50 {
        m.tx.available_idx.store(1000, std::sync::atomic::Ordering::SeqCst);
        m.tx.kick.write(1).expect("kick");
        m.pump();
        assert_eq!(frames(&mut m.link), 0);
        assert_eq!(m.link.stats().broken_rings, round);
        // As after a reset of the device, of one kind and of the other.
        if round % 2 == 0 {
            m.say(RESET_DEVICE, &[], &[]);
            m.rx.reset();
        } else {
            m.stop_ring(0);
            m.stop_ring(1);
        }
        m.tx.reset();
        m.start_rings();
        assert_eq!(send_one(&mut m), 1);
    }
    assert_eq!(said("ring stopped"), 8);
    // Memory without the rings.
    let r = &m.memory.regions[1];
    let table = words(&[1, r.guest, r.size, r.guest + VMM, r.offset]);
    for _ in 0..50 {
        m.say(SET_MEM_TABLE, &table, &[m.memory.file.as_raw_fd()]);
    }
    assert_eq!(said("is not in shared memory"), 8);
    // The next client is heard of anew.
    let (another, n) = (Machine::new(Options::default()), said("ring stopped"));
    let mut m = another;
    m.tx.available_idx.store(1000, std::sync::atomic::Ordering::SeqCst);
    m.tx.kick.write(1).expect("kick");
    m.pump();
    frames(&mut m.link);
    assert_eq!(said("ring stopped"), n + 1);
}
