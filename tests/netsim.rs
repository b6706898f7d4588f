//! The engine between a guest with a TCP that is not ours (smoltcp) and sockets in memory, under a
//! virtual clock and weather from a seed. Every byte is compared on both ends. `SIM_TIMES=100` looks
//! at a hundred times as many seeds.

mod common;

use common::sim::{Chance, Fate, Last, Load, OpenedBy, Report, Weather, World};
use passt::time::Duration;
use std::ops::Range;

/// A load with all that chance can vary.
fn some_load(chance: &mut Chance, most: usize) -> Load {
    Load {
        opened_by: if chance.percent(50) { OpenedBy::Guest } else { OpenedBy::Peer },
        v6: chance.percent(50),
        up: if chance.percent(15) { 0 } else { chance.below(most) },
        down: if chance.percent(15) { 0 } else { chance.below(most) },
        last: [Last::Guest, Last::Peer, Last::Nobody][chance.below(3)],
        fate: Fate::Well,
    }
}

/// So many seeds from `first` on, or more.
fn seeds(first: u64, n: u64) -> Range<u64> {
    let times = std::env::var("SIM_TIMES").map_or(1, |n| n.parse().expect("a number"));
    first..first + n * times
}

#[track_caller]
fn run(seed: u64, weather: Weather, loads: &[Load]) -> Report {
    eprintln!("seed {seed}: {weather:?}, {loads:?}");
    World::new(seed, weather, loads).run()
}

/// Nothing is sent twice and nobody is reset.
#[track_caller]
fn assert_clean(report: &Report) {
    assert_eq!((report.resent_to_guest, report.resent_by_guest, report.resets), (0, 0, 0));
}

const UP: Load = Load {
    opened_by: OpenedBy::Guest,
    v6: false,
    up: 3_000_000,
    down: 0,
    last: Last::Nobody,
    fate: Fate::Well,
};
const DOWN: Load = Load { up: 0, down: 3_000_000, ..UP };

#[test]
fn bytes_cross_unharmed_in_fair_weather() {
    for v6 in [false, true] {
        for opened_by in [OpenedBy::Guest, OpenedBy::Peer] {
            for load in [UP, DOWN, Load { down: 1_000_000, ..UP }] {
                assert_clean(&run(1, Weather::FAIR, &[Load { v6, opened_by, ..load }]));
            }
        }
    }
}

#[test]
fn no_mtu_and_no_offload_changes_that() {
    for mtu in [1280, 1500, 9000, 65_520] {
        for offload in [false, true] {
            let weather = Weather { mtu, offload, ..Weather::FAIR };
            assert_clean(&run(2, weather, &[Load { down: 2_000_000, ..UP }]));
            assert_clean(&run(3, weather, &[Load { v6: true, opened_by: OpenedBy::Peer, ..DOWN }]));
        }
    }
}

#[test]
fn whoever_closes_first_the_other_may_go_on() {
    for opened_by in [OpenedBy::Guest, OpenedBy::Peer] {
        for last in [Last::Guest, Last::Peer, Last::Nobody] {
            for (up, down) in [(0, 0), (0, 1), (1, 0), (1, 1), (40_000, 300_000), (300_000, 40_000)]
            {
                let load = Load { opened_by, v6: false, up, down, last, fate: Fate::Well };
                assert_clean(&run(4, Weather::FAIR, &[load]));
            }
        }
    }
}

#[test]
fn nothing_is_sent_twice_on_a_lossless_link_however_tight() {
    let mut chance = Chance::new(5);
    for seed in seeds(100, 200) {
        let weather = Weather {
            ring: 1 + chance.below(40),
            sleep: Duration::from_millis(1 + chance.below(300) as u64),
            short_write: chance.below(60) as u8,
            socket: 1000 + chance.below(100_000),
            // No window scale: smoltcp rounds a scaled window down and then refuses what it has
            // promised before (against RFC 7323 2.4).
            guest: 4000 + chance.below(60_000),
            mtu: [1500, 9000, 65_520][chance.below(3)],
            offload: chance.percent(50),
            ..Weather::FAIR
        };
        let loads: Vec<Load> =
            (0..1 + chance.below(6)).map(|_| some_load(&mut chance, 400_000)).collect();
        assert_clean(&run(seed, weather, &loads));
    }
}

#[test]
fn a_slow_peer_costs_the_guest_no_retransmission() {
    let weather = Weather { socket: 2000, short_write: 50, ..Weather::FAIR };
    assert_clean(&run(6, weather, &[Load { up: 2_500_000, ..UP }]));
}

#[test]
fn a_ring_of_one_frame_is_enough() {
    let weather = Weather { ring: 1, ..Weather::FAIR };
    assert_clean(&run(7, weather, &[Load { down: 300_000, ..UP }, DOWN]));
}

#[test]
fn every_byte_arrives_through_loss_reordering_and_duplication() {
    let mut chance = Chance::new(8);
    for seed in seeds(200, 300) {
        let weather = Weather {
            loss: chance.below(12) as u8,
            duplicate: chance.below(10) as u8,
            reorder: chance.below(20) as u8,
            ring: 4 + chance.below(60),
            sleep: Duration::from_millis(1 + chance.below(50) as u64),
            short_write: chance.below(40) as u8,
            socket: 2000 + chance.below(200_000),
            guest: 8000 + chance.below(100_000),
            mtu: [1500, 9000][chance.below(2)],
            offload: chance.percent(50),
        };
        let loads: Vec<Load> =
            (0..1 + chance.below(4)).map(|_| some_load(&mut chance, 150_000)).collect();
        run(seed, weather, &loads);
    }
}

#[test]
fn many_flows_share_a_narrow_link() {
    let mut chance = Chance::new(9);
    let weather = Weather { ring: 8, socket: 20_000, guest: 20_000, ..Weather::FAIR };
    let loads: Vec<Load> = (0..100).map(|_| some_load(&mut chance, 30_000)).collect();
    assert_clean(&run(9, weather, &loads));
}

#[test]
fn a_seed_decides_everything() {
    let weather = Weather { loss: 5, reorder: 10, duplicate: 5, ..Weather::FAIR };
    let load = Load { up: 200_000, down: 200_000, ..UP };
    assert_eq!(run(10, weather, &[load]), run(10, weather, &[load]));
}

#[test]
fn a_guest_that_sleeps_for_longer_than_a_timeout_loses_nothing() {
    let mut chance = Chance::new(11);
    for seed in seeds(300, 40) {
        let weather = Weather {
            ring: 1 + chance.below(100),
            sleep: Duration::from_secs(6),
            guest: 30_000,
            ..Weather::FAIR
        };
        let loads: Vec<Load> = (0..3).map(|_| some_load(&mut chance, 200_000)).collect();
        let report = run(seed, weather, &loads);
        // A segment for each timeout of a flow, not a window.
        let timeouts = 3 * (2 + report.time.as_secs());
        assert!(report.resent_to_guest <= timeouts, "{report:?}");
    }
}

#[test]
fn the_worst_of_everything_at_once_loses_no_byte() {
    let mut chance = Chance::new(14);
    for seed in seeds(500, 60) {
        let weather = Weather {
            loss: chance.below(15) as u8,
            duplicate: chance.below(30) as u8,
            reorder: chance.below(50) as u8,
            ring: 1 + chance.below(3),
            sleep: Duration::from_millis(1 + chance.below(5000) as u64),
            short_write: chance.below(95) as u8,
            socket: 500 + chance.below(3000),
            guest: 2000 + chance.below(8000),
            mtu: [1280, 1500, 65_520][chance.below(3)],
            offload: chance.percent(50),
        };
        let loads: Vec<Load> =
            (0..1 + chance.below(4)).map(|_| some_load(&mut chance, 5_000)).collect();
        run(seed, weather, &loads);
    }
}

#[test]
fn refused_connections_are_reset() {
    let refused = Load { fate: Fate::Refused, ..UP };
    let report = run(12, Weather::FAIR, &[refused, Load { v6: true, ..refused }, DOWN]);
    assert_eq!((report.resets, report.resent_to_guest), (2, 0));
}

#[test]
fn whoever_resets_a_connection_the_other_is_told_and_others_go_on() {
    let mut chance = Chance::new(13);
    for seed in seeds(400, 100) {
        let weather = Weather {
            loss: if chance.percent(50) { 0 } else { chance.below(8) as u8 },
            ring: 1 + chance.below(40),
            sleep: Duration::from_millis(1 + chance.below(100) as u64),
            short_write: chance.below(50) as u8,
            socket: 2000 + chance.below(50_000),
            guest: 4000 + chance.below(60_000),
            ..Weather::FAIR
        };
        let mut loads = vec![some_load(&mut chance, 100_000)];
        for _ in 0..3 {
            let n = chance.below(100_000);
            let fate = [Fate::PeerResets(n), Fate::GuestResets(n)][chance.below(2)];
            let load = some_load(&mut chance, 100_000);
            // More than the one that resets waits for, so that it does.
            loads.push(Load { up: 200_000, down: 200_000, fate, ..load });
        }
        run(seed, weather, &loads);
    }
}
