use super::*;
use crate::span::{gather, total};
use proptest::prelude::*;

const HEADROOM: usize = 4;
const MIN_FRAME: usize = 60;

fn arena(capacity: usize) -> Arena {
    Arena::new(capacity, Shape { headroom: HEADROOM, min_frame: MIN_FRAME, align: 1 })
}

/// Commits a frame of `len` bytes, all of them `fill`.
fn put(arena: &mut Arena, len: usize, fill: u8) -> Option<()> {
    let slot = arena.reserve(len)?;
    arena.write(&slot, 0, &vec![fill; len]);
    arena.commit(&slot, len, |len| (len as u32).to_be_bytes());
    Some(())
}

/// What `put` makes.
fn frame(len: usize, fill: u8) -> Vec<u8> {
    let padded = len.max(MIN_FRAME);
    let mut bytes = (padded as u32).to_be_bytes().to_vec();
    bytes.resize(HEADROOM + len, fill);
    bytes.resize(HEADROOM + padded, 0);
    bytes
}

/// All that waits, and in how many runs.
fn waiting(arena: &Arena) -> (Vec<u8>, usize) {
    let mut runs = Vec::new();
    arena.runs(usize::MAX, &mut runs);
    let mut bytes = vec![0; total(&runs)];
    gather(&runs, 0, &mut bytes);
    (bytes, runs.len())
}

#[test]
fn frames_that_follow_each_other_are_one_run() {
    let mut arena = arena(1000);
    put(&mut arena, 100, 1).unwrap();
    put(&mut arena, 61, 2).unwrap();
    assert_eq!(waiting(&arena), ([frame(100, 1), frame(61, 2)].concat(), 1));
    assert_eq!(arena.load(), 104 + 65);
    arena.advance(104);
    assert_eq!(waiting(&arena).0, frame(61, 2));
    arena.advance(65);
    assert_eq!((waiting(&arena).0, arena.load()), (vec![], 0));
}

#[test]
fn a_short_frame_is_padded_with_zeros_whatever_stood_there() {
    let mut arena = arena(1000);
    put(&mut arena, 60, 0xff).unwrap();
    arena.advance(64);
    put(&mut arena, 14, 7).unwrap();
    assert_eq!(waiting(&arena).0, frame(14, 7));
}

#[test]
fn what_a_peek_did_not_fill_leaves_no_gap() {
    let mut arena = arena(1000);
    let slots: Vec<_> = (0..3).map(|_| arena.reserve(200).unwrap()).collect();
    assert_eq!(slots.len(), 3);
    let mut slots = slots.into_iter();
    arena.commit(&slots.next().unwrap(), 80, |_| [1; HEADROOM]);
    slots.for_each(|slot| arena.cancel(&slot));
    put(&mut arena, 60, 2).unwrap();
    assert_eq!((waiting(&arena).1, arena.load()), (1, 84 + 64));
}

#[test]
fn a_gap_between_frames_makes_two_runs() {
    let mut arena = arena(1000);
    let (a, b) = (arena.reserve(200).unwrap(), arena.reserve(200).unwrap());
    arena.commit(&a, 100, |_| [0; HEADROOM]);
    arena.commit(&b, 100, |_| [0; HEADROOM]);
    let (bytes, runs) = waiting(&arena);
    assert_eq!((bytes.len(), runs), (208, 2));
    let mut limited = Vec::new();
    arena.runs(1, &mut limited);
    assert_eq!(total(&limited), 104);
}

#[test]
fn open_slots_and_what_is_behind_them_wait() {
    let mut arena = arena(1000);
    put(&mut arena, 60, 1).unwrap();
    let (open, behind) = (arena.reserve(60).unwrap(), arena.reserve(60).unwrap());
    arena.commit(&behind, 60, |_| [0; HEADROOM]);
    assert_eq!(waiting(&arena).0, frame(60, 1));
    arena.advance(64);
    assert_eq!(waiting(&arena).0, []);
    arena.write(&open, 0, &[9; 60]);
    let mut back = [0; 60];
    assert_eq!((arena.read(&open, 0, &mut back), back), (60, [9; 60]));
    arena.commit(&open, 60, |_| [0; HEADROOM]);
    assert_eq!(waiting(&arena).0.len(), 128);
}

#[test]
fn the_end_of_the_ring_is_skipped_by_frames_that_do_not_fit() {
    let mut arena = arena(300);
    put(&mut arena, 100, 1).unwrap();
    put(&mut arena, 100, 2).unwrap();
    assert!(put(&mut arena, 100, 3).is_none());
    arena.advance(104);
    put(&mut arena, 100, 3).unwrap();
    assert_eq!(waiting(&arena), ([frame(100, 2), frame(100, 3)].concat(), 2));
    assert!(put(&mut arena, 60, 4).is_none(), "it is full");
    assert_eq!(arena.load(), 300 - 104 + 104);
    arena.advance(104);
    assert_eq!(waiting(&arena).0, frame(100, 3));
}

#[test]
fn room_ends_with_what_was_reserved() {
    let mut arena = arena(300);
    let slot = arena.reserve(100).unwrap();
    let mut room = Vec::new();
    arena.append_room(&slot, 54, &mut room);
    arena.append_room(&slot, 100, &mut room);
    let lens: Vec<_> = room.iter().map(SpanMut::len).collect();
    assert_eq!(lens, [46]);
    arena.write(&slot, 90, &[1; 50]);
    assert_eq!(arena.bytes(&slot, 89, 11).unwrap(), [[0].as_slice(), &[1; 10]].concat());
    assert!(arena.bytes(&slot, 89, 12).is_none() && arena.bytes(&slot, usize::MAX, 2).is_none());
}

#[test]
fn void_slots_name_nothing() {
    let mut arena = arena(300);
    let slot = arena.reserve(100).unwrap();
    arena.clear();
    let other = arena.reserve(100).unwrap();
    arena.write(&slot, 0, &[1; 100]);
    arena.commit(&slot, 100, |_| [0; HEADROOM]);
    arena.cancel(&slot);
    assert_eq!(
        (waiting(&arena).0.len(), arena.bytes(&other, 0, 100)),
        (0, Some([0; 100].as_slice()))
    );
}

/// What the other end would see.
#[derive(Default)]
struct Model {
    waiting: Vec<u8>,
    fill: u8,
}

impl Model {
    /// A peek: `slots` of `len` bytes are reserved, filled with `filled` bytes in all.
    fn peek(&mut self, arena: &mut Arena, slots: usize, len: usize, mut filled: usize) {
        let slots: Vec<_> = (0..slots).map_while(|_| arena.reserve(len)).collect();
        for slot in slots {
            let part = filled.min(len);
            filled -= part;
            if part == 0 {
                arena.cancel(&slot);
                continue;
            }
            self.fill = self.fill.wrapping_add(1);
            arena.write(&slot, 0, &vec![self.fill; part]);
            arena.commit(&slot, part, |len| (len as u32).to_be_bytes());
            self.waiting.extend(frame(part, self.fill));
        }
    }
}

proptest! {
    #[test]
    fn whatever_is_done_bytes_leave_in_order(
        capacity in 64usize..2000,
        steps in prop::collection::vec((0usize..4, 1usize..300, 0usize..900, 0usize..700), 1..60),
    ) {
        let (mut arena, mut model) = (arena(capacity), Model::default());
        for (slots, len, filled, gone) in steps {
            model.peek(&mut arena, slots, len, filled);
            let (bytes, runs) = waiting(&arena);
            prop_assert_eq!(&bytes, &model.waiting);
            prop_assert!(runs <= 2 && arena.load() <= capacity);
            let gone = gone.min(bytes.len());
            arena.advance(gone);
            model.waiting.drain(..gone);
        }
        // All of it is free again in the end.
        arena.advance(model.waiting.len());
        prop_assert!(arena.reserve(capacity - HEADROOM).is_some());
    }
}
