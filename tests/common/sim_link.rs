//! The link of the simulation: frames in memory, a receive ring of limited size, and weather.

use super::sim::{Chance, Weather};
use super::smol::Wire;
use passt::link::{
    Frame, Link, LinkCaps, LinkEvents, MAX_FRAME, Offload, Refused, SegmentationKind, Sink, Slot,
    Source,
};
use passt::span::{Span, SpanMut};
use passt::time::{Duration, Instant};
use passt::token::Readiness;
use smoltcp::wire::{
    EthernetFrame, EthernetProtocol, IpAddress, Ipv4Packet, Ipv6Packet, TcpPacket, TcpSeqNumber,
};
use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::io;

thread_local! {
    /// Buffers that live for ever, so that spans of them may be handed out freely.
    static BUFFERS: RefCell<Vec<SpanMut<'static>>> = const { RefCell::new(Vec::new()) };
}

fn buffer() -> SpanMut<'static> {
    let old = BUFFERS.with_borrow_mut(Vec::pop);
    old.unwrap_or_else(|| SpanMut::from_slice(vec![0; MAX_FRAME].leak()))
}

fn give_back(buffer: SpanMut<'static>) {
    BUFFERS.with_borrow_mut(|all| all.push(buffer));
}

pub struct SimLink {
    source: SimSource,
    sink: SimSink,
    chance: Chance,
    weather: Weather,
    watch: Watch,
    /// The sink has refused a frame since room came last.
    starved: bool,
}

/// Counts what was sent twice, by 4-tuple as ports and the last byte of the remote.
#[derive(Default)]
struct Watch {
    to_guest: HashMap<(u16, u16, u8), (u32, u64)>,
    from_guest: HashMap<(u16, u16, u8), (u32, u64)>,
    resets: u64,
    /// Print segments, to look into a seed (set SIM_TRACE).
    trace: bool,
}

pub struct SimSource {
    pub now: Instant,
    /// Frames on their way, by time of arrival.
    coming: VecDeque<(Instant, Vec<u8>)>,
    batch: Vec<([Span<'static>; 1], SpanMut<'static>, Offload)>,
    offload: bool,
}

pub struct SimSink {
    caps: LinkCaps,
    ring: usize,
    open: VecDeque<OpenSlot>,
    next_slot: u32,
    committed: Vec<(Vec<u8>, Offload)>,
    /// Published frames that the guest has not taken.
    published: VecDeque<(Vec<u8>, Offload)>,
    refused: bool,
}

struct OpenSlot {
    index: u32,
    buffer: SpanMut<'static>,
    len: usize,
}

impl SimLink {
    pub fn new(weather: Weather, seed: u64) -> Self {
        let caps = LinkCaps {
            checksum: weather.offload,
            tcp4_segmentation: weather.offload,
            tcp6_segmentation: weather.offload,
            max_frame: if weather.offload { MAX_FRAME } else { usize::from(weather.mtu) + 14 },
            ..LinkCaps::default()
        };
        Self {
            source: SimSource {
                now: Instant::ZERO,
                coming: VecDeque::new(),
                batch: Vec::new(),
                offload: weather.offload,
            },
            sink: SimSink {
                caps,
                ring: weather.ring,
                open: VecDeque::new(),
                next_slot: 0,
                committed: Vec::new(),
                published: VecDeque::new(),
                refused: false,
            },
            chance: Chance::new(seed ^ 0x5eed),
            weather,
            watch: Watch { trace: std::env::var_os("SIM_TRACE").is_some(), ..Watch::default() },
            starved: false,
        }
    }

    /// The guest takes what is published, as the weather allows.
    pub fn give_to_guest(&mut self, wire: &mut Wire, now: Instant) {
        let mut frames: Vec<Vec<u8>> = Vec::new();
        for (frame, offload) in self.sink.published.drain(..) {
            frames.extend(cut(&frame, &offload));
        }
        for frame in frames {
            self.watch.look(&frame, true, now);
            if self.chance.percent(self.weather.loss) {
                continue;
            }
            if self.chance.percent(self.weather.duplicate) {
                wire.rx.push_back(frame.clone());
            }
            if self.chance.percent(self.weather.reorder) && !wire.rx.is_empty() {
                let at = wire.rx.len() - 1;
                wire.rx.insert(at, frame);
            } else {
                wire.rx.push_back(frame);
            }
        }
        self.starved |= std::mem::take(&mut self.sink.refused);
    }

    /// What the guest has sent is on its way, as the weather allows.
    pub fn take_from_guest(&mut self, wire: &mut Wire, now: Instant) {
        for frame in wire.tx.drain(..) {
            self.watch.look(&frame, false, now);
            if self.chance.percent(self.weather.loss) {
                continue;
            }
            let mut at = now + Duration::from_micros(20);
            let coming = &mut self.source.coming;
            if self.chance.percent(self.weather.duplicate) {
                coming.push_back((at, frame.clone()));
            }
            if self.chance.percent(self.weather.reorder) {
                at = at + Duration::from_micros(self.chance.next() % 500);
            }
            let place = coming.iter().rposition(|(other, _)| *other <= at).map_or(0, |i| i + 1);
            coming.insert(place, (at, frame));
        }
    }

    pub fn next_arrival(&self) -> Option<Instant> {
        self.source.coming.front().map(|(at, _)| *at)
    }

    pub fn has_for_guest(&self) -> bool {
        !self.sink.published.is_empty()
    }

    pub fn room_has_come(&mut self) -> bool {
        self.starved && self.sink.published.len() < self.sink.ring && {
            self.starved = false;
            true
        }
    }

    pub fn twice_to_guest(&self) -> u64 {
        self.watch.to_guest.values().map(|(_, twice)| twice).sum()
    }

    pub fn twice_from_guest(&self) -> u64 {
        self.watch.from_guest.values().map(|(_, twice)| twice).sum()
    }

    pub fn resets(&self) -> u64 {
        self.watch.resets
    }
}

impl Link for SimLink {
    type Source = SimSource;
    type Sink = SimSink;

    fn halves(&mut self) -> (&mut SimSource, &mut SimSink) {
        (&mut self.source, &mut self.sink)
    }

    fn on_event(&mut self, _which: u32, _ready: Readiness) -> io::Result<LinkEvents> {
        Ok(LinkEvents::default())
    }
}

impl Source for SimSource {
    fn receive(&mut self) -> io::Result<usize> {
        assert!(self.batch.is_empty(), "the previous batch was not released");
        while self.batch.len() < 64 && self.coming.front().is_some_and(|(at, _)| *at <= self.now) {
            let Some((_, frame)) = self.coming.pop_front() else { break };
            let buffer = buffer();
            assert_eq!(buffer.write(0, &frame), frame.len());
            let offload = Offload::default();
            self.batch.push(([buffer.as_span().take(frame.len())], buffer, offload));
        }
        Ok(self.batch.len())
    }

    fn frame(&self, index: usize) -> Frame<'_> {
        let (spans, _, offload) = &self.batch[index];
        Frame { spans, len: spans[0].len(), offload: *offload }
    }

    fn release(&mut self) {
        self.batch.drain(..).for_each(|(_, buffer, _)| give_back(buffer));
    }
}

impl SimSink {
    fn slot(&self, slot: &Slot) -> &OpenSlot {
        self.open.iter().find(|open| open.index == slot.index).expect("the slot is open")
    }
}

impl Sink for SimSink {
    fn caps(&self) -> LinkCaps {
        self.caps
    }

    fn reserve(&mut self, len: usize) -> Result<Slot, Refused> {
        if len > self.caps.max_frame {
            return Err(Refused::TooLarge);
        }
        if self.open.len() + self.committed.len() + self.published.len() >= self.ring {
            self.refused = true;
            return Err(Refused::Full);
        }
        let index = self.next_slot;
        self.next_slot += 1;
        self.open.push_back(OpenSlot { index, buffer: buffer(), len });
        Ok(Slot { index })
    }

    fn room<'a>(&'a self, slot: &Slot, skip: usize, out: &mut Vec<SpanMut<'a>>) {
        let open = self.slot(slot);
        // In two pieces, as guests' buffers come.
        let room = open.buffer.take(open.len).skip(skip);
        let half = room.len() / 2;
        out.extend([room.take(half), room.skip(half)].into_iter().filter(|span| !span.is_empty()));
    }

    fn write(&mut self, slot: &Slot, offset: usize, bytes: &[u8]) {
        let open = self.slot(slot);
        assert!(offset + bytes.len() <= open.len, "written beyond the slot");
        open.buffer.skip(offset).write(0, bytes);
    }

    fn read(&self, slot: &Slot, offset: usize, into: &mut [u8]) -> usize {
        let open = self.slot(slot);
        open.buffer.take(open.len).as_span().read(offset, into)
    }

    fn commit(&mut self, slot: Slot, len: usize, offload: Offload) {
        let open = self.open.pop_front().expect("the slot is open");
        assert_eq!(open.index, slot.index, "committed out of order");
        assert!(len <= open.len, "longer than reserved");
        let mut frame = vec![0; len];
        open.buffer.as_span().read(0, &mut frame);
        give_back(open.buffer);
        self.committed.push((frame, offload));
    }

    fn cancel(&mut self, slot: Slot) {
        let at = self.open.iter().position(|open| open.index == slot.index);
        let open = self.open.remove(at.expect("the slot is open")).expect("found");
        give_back(open.buffer);
    }

    fn flush(&mut self) -> io::Result<()> {
        assert!(self.open.is_empty(), "slots are left open");
        self.published.extend(self.committed.drain(..));
        Ok(())
    }
}

impl Watch {
    /// Data that lies before what was sent already was sent twice.
    fn look(&mut self, frame: &[u8], to_guest: bool, now: Instant) {
        let Ok(ethernet) = EthernetFrame::new_checked(frame) else { return };
        let (payload, remote) = match ethernet.ethertype() {
            EthernetProtocol::Ipv4 => {
                let ip = Ipv4Packet::new_checked(ethernet.payload()).expect("whole packets");
                let remote = if to_guest { ip.src_addr() } else { ip.dst_addr() };
                (ip.payload().to_vec(), remote.octets()[3])
            }
            EthernetProtocol::Ipv6 => {
                let ip = Ipv6Packet::new_checked(ethernet.payload()).expect("whole packets");
                let remote = if to_guest { ip.src_addr() } else { ip.dst_addr() };
                if ip.next_header() != smoltcp::wire::IpProtocol::Tcp {
                    return;
                }
                (ip.payload().to_vec(), remote.octets()[15] ^ 0x60)
            }
            _ => return,
        };
        let Ok(tcp) = TcpPacket::new_checked(&payload[..]) else { return };
        self.resets += u64::from(to_guest && tcp.rst());
        if self.trace {
            let way = if to_guest { "<-" } else { "->" };
            let repr = smoltcp::wire::PrettyPrinter::<TcpPacket<&[u8]>>::print(&tcp);
            eprintln!("{:.6} {way} {repr}", now.since(Instant::ZERO).as_secs_f64());
        }
        let seq = tcp.seq_number().0 as u32;
        let end = seq.wrapping_add(tcp.payload().len() as u32);
        let seen = if to_guest { &mut self.to_guest } else { &mut self.from_guest };
        let key = (tcp.src_port(), tcp.dst_port(), remote);
        let (max, twice) = seen.entry(key).or_insert((end, 0));
        if tcp.syn() {
            *max = seq.wrapping_add(1);
            return;
        }
        if tcp.payload().is_empty() {
            return;
        }
        if (end.wrapping_sub(*max) as i32) > 0 {
            *twice += u64::from(seq != *max && (seq.wrapping_sub(*max) as i32) < 0);
            *max = end;
        } else {
            *twice += 1;
        }
    }
}

/// What hardware does with a frame that stands for many (virtio 1.3 5.1.6.2).
fn cut(frame: &[u8], offload: &Offload) -> Vec<Vec<u8>> {
    let Some(segmentation) = offload.segmentation else {
        let mut whole = frame.to_vec();
        if let Some(partial) = offload.checksum {
            complete(&mut whole, partial.start.into(), partial.offset.into());
        }
        return vec![whole];
    };
    let partial = offload.checksum.expect("segmentation without checksum offload");
    let headers = usize::from(segmentation.header_len);
    let v4 = segmentation.kind == SegmentationKind::Tcp4;
    let (header, payload) = frame.split_at(headers);
    let count = payload.len().div_ceil(segmentation.size.into());
    let chunks = payload.chunks(segmentation.size.into()).enumerate();
    chunks
        .map(|(index, chunk)| {
            let mut out = [header, chunk].concat();
            let ip_len = out.len() - 14;
            let (ip, tcp) = out[14..].split_at_mut(if v4 { 20 } else { 40 });
            let mut tcp = TcpPacket::new_unchecked(tcp);
            let before = index * usize::from(segmentation.size);
            tcp.set_seq_number(TcpSeqNumber(tcp.seq_number().0.wrapping_add(before as i32)));
            if index + 1 < count {
                tcp.set_fin(false);
                tcp.set_psh(false);
            }
            let (src, dst) = if v4 {
                let mut ip = Ipv4Packet::new_unchecked(ip);
                ip.set_total_len(ip_len as u16);
                ip.fill_checksum();
                (IpAddress::Ipv4(ip.src_addr()), IpAddress::Ipv4(ip.dst_addr()))
            } else {
                let mut ip = Ipv6Packet::new_unchecked(ip);
                ip.set_payload_len(ip_len as u16 - 40);
                (IpAddress::Ipv6(ip.src_addr()), IpAddress::Ipv6(ip.dst_addr()))
            };
            tcp.fill_checksum(&src, &dst);
            assert_eq!(usize::from(partial.start), if v4 { 34 } else { 54 });
            out
        })
        .collect()
}

/// Completes the partial checksum of a frame.
fn complete(frame: &mut [u8], start: usize, offset: usize) {
    let mut sum = 0u32;
    for pair in frame[start..].chunks(2) {
        sum += u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0));
    }
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    frame[start + offset..start + offset + 2].copy_from_slice(&(!(sum as u16)).to_be_bytes());
}
