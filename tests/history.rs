//! The history of the program that we replace, and its known defects, each held against the tests
//! of ours that would notice if we repeated it. The tables name tests; what is tested here is that
//! every row has one and that each of those exists.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// A capability or a fix of the years in which the original learned its trade, and our tests.
type Row = (&'static str, &'static [&'static str]);

const CAPABILITIES: &[Row] = &[
    (
        "native sockets; both kernels observed; both directions",
        &[
            "a_guest_uses_the_network_at_the_largest_mtu",
            "appendix_a_02_16_the_guests_handshake_completes_only_after_the_peers",
        ],
    ),
    ("all unbound ports forwarded", &["all_and_exclusions_alone_leave_out_the_ephemeral_ports"]),
    (
        "stream framing with lengths",
        &["frames_go_out_with_their_length_padded_to_what_ethernet_knows"],
    ),
    ("several frames a receive", &["frames_come_many_at_once_and_in_order"]),
    ("strict length checks in services", &["no_frame_panics", "no_dhcp_options_panic"]),
    ("active and passive close, FIN both ways", &["both_close_at_once", "the_guest_closes_first"]),
    ("option parser", &["broken_option_areas_end_quietly", "our_options_are_eight_bytes"]),
    ("data offset in bytes", &["data_offsets_are_checked"]),
    (
        "initial sequence numbers by SipHash, both directions",
        &["sequence_numbers_and_labels_depend_on_flow_and_key"],
    ),
    ("old ACKs are ignored, not fatal", &["appendix_a_03_17_old_acks_are_ignored_not_fatal"]),
    ("lookup by keyed hash, cheap removal", &["it_agrees_with_a_map_over_many_operations"]),
    (
        "background operation, log severities",
        &["status_zero_in_background_means_ready", "a_line_begins_as_its_reader_expects"],
    ),
    ("headers are copied, never dereferenced in place", &["gather_and_scatter_cross_borders"]),
    ("many packets a call", &["a_batch_is_one_send_per_flow_and_one_answer"]),
    (
        "loopback and own sources become other addresses",
        &["peers_keep_their_addresses_unless_the_guest_could_not_answer"],
    ),
    (
        "error queues are read; a failing batch costs one message",
        &[
            "errors_of_the_network_reach_the_guest_as_icmp",
            "a_datagram_that_the_host_refuses_stops_no_other",
        ],
    ),
    (
        "early data is kept",
        &[
            "appendix_a_04_29_data_before_the_end_of_the_handshake_stays_in_the_socket",
            "what_a_peer_sends_early_arrives_after_the_handshake",
        ],
    ),
    (
        "UDP tracking; MAC and addresses learned; one clock read a wake-up",
        &[
            "from_outside_a_datagram_opens_a_flow_that_answers_from_its_address",
            "replies_go_to_the_mac_that_was_seen_last",
            "connections_from_outside_go_to_the_address_that_was_seen_last",
        ],
    ),
    ("hang-ups outside data states close", &["appendix_a_05_21_a_hang_up_in_the_handshake_closes"]),
    (
        "connection limit",
        &[
            "a_full_table_refuses_in_silence_and_takes_the_next_when_a_flow_ends",
            "a_full_table_resets_connections_from_outside",
        ],
    ),
    ("windows of SYNs are not scaled", &["appendix_a_06_05_windows_of_syns_are_not_scaled"]),
    (
        "kernels without tcpi_snd_wnd",
        &[
            "appendix_a_06_08_without_the_peers_window_a_default_is_shown_and_every_ack_looks_for_data",
        ],
    ),
    (
        "namespace tap, splice, local UDP",
        &[
            "the_network_of_the_host_is_reached_as_the_host",
            "the_host_is_seen_as_its_table_of_addresses_says",
            "forwarded_ports_are_reached_from_elsewhere_by_who_one_is",
            "a_gibibyte_each_way_arrives_unchanged",
            "datagrams_of_all_sizes_cross_both_ways",
        ],
    ),
    ("kernels without SO_PEEK_OFF", &["peeking_works_without_an_offset_in_the_kernel"]),
    ("ACKs are coalesced", &["appendix_a_07_17_acks_are_coalesced"]),
    ("SYN+ACK never opens a connection", &["only_a_syn_opens_a_connection_and_the_rest_is_reset"]),
    ("separate port sets of both families", &["families_that_are_off_are_refused_or_left_out"]),
    ("window scale", &["appendix_a_07_21_the_window_scale_is_8"]),
    (
        "scatter-gather from socket to guest in segments of its MSS",
        &["appendix_a_07_26_segments_to_the_guest_are_of_its_mss"],
    ),
    (
        "flow labels: unique, hard to guess, never zero",
        &["v6_frames_of_a_flow_carry_a_label_of_their_own"],
    ),
    ("resend on timeout works", &["a_timeout_sends_the_first_segment_and_then_more_and_more"]),
    (
        "the kernel is asked only when the window is used",
        &["appendix_a_07_27_the_kernel_is_asked_only_when_the_window_is_used_up"],
    ),
    ("a batch of segments is one send", &["a_batch_is_one_send_per_flow_and_one_answer"]),
    (
        "pending bytes are acknowledged in every state; a FIN counts",
        &["appendix_a_08_04_pending_bytes_are_acknowledged_in_every_state_and_a_fin_counts"],
    ),
    (
        "fast retransmit; the window is filled fully",
        &[
            "the_third_duplicate_ack_sends_one_segment_and_partial_acks_the_next",
            "only_the_guests_window_is_filled_and_its_last_segment_too",
        ],
    ),
    (
        "events that do not get lost",
        &["a_fin_behind_data_is_noticed_however_events_and_peeks_interleave"],
    ),
    ("a SYN never carries an ACK", &["appendix_a_08_24_a_syn_never_carries_an_ack"]),
    (
        "what the transport does not take counts as unsent",
        &[
            "appendix_a_08_26_the_sequence_is_that_of_what_was_sent",
            "without_room_data_stays_in_the_socket_and_comes_when_there_is_some",
        ],
    ),
    (
        "early FIN behind early data; window clamping",
        &[
            "appendix_a_09_01_early_data_comes_before_an_early_fin",
            "the_window_never_shows_more_than_16_mib",
        ],
    ),
    (
        "options and port mapping",
        &["single_ports_and_ranges_are_translated", "bad_values_are_refused_in_one_line"],
    ),
];

/// Defects of the original, by their number in our list of them.
const DEFECTS: &[Row] = &[
    (
        "1 a disconnect in mid-frame poisons later clients",
        &["appendix_b_1_a_partial_frame_is_forgotten_with_its_client"],
    ),
    (
        "2 payload that the socket does not take is dropped",
        &[
            "appendix_b_2_what_the_socket_does_not_take_is_never_lost",
            "nothing_is_sent_twice_on_a_lossless_link_however_tight",
        ],
    ),
    (
        "3 extension headers and fragments yield nonsense",
        &[
            "appendix_b_3_extension_headers_are_walked",
            "fragments_in_any_order_become_a_datagram_in_its_place_among_others",
            "fragments_that_overlap_or_make_no_sense_are_counted",
        ],
    ),
    (
        "4 window scale that was not offered",
        &[
            "appendix_b_4_no_scale_in_a_syn_ack_unless_the_guest_offered_one",
            "a_guest_without_window_scaling_gets_windows_that_fit_the_field",
        ],
    ),
    ("5 repeated SYNs move", &["appendix_b_5_a_repeated_syn_keeps_its_number_and_its_schedule"]),
    ("6 RST, SYN and ACK are believed blindly", &["appendix_b_6_resets_syns_and_acks_are_checked"]),
    (
        "7 one duplicate ACK resends the window",
        &["appendix_b_7_one_duplicate_ack_resends_nothing_three_resend_one_segment"],
    ),
    (
        "8 unknown messages and ring errors end the process",
        &[
            "unknown_requests_are_refused_and_the_session_goes_on",
            "a_broken_ring_stops_and_says_so_once_while_the_other_goes_on",
        ],
    ),
    (
        "9 an empty receive ring spins",
        &[
            "appendix_b_9_no_room_in_the_ring_leaves_nothing_to_spin_on",
            "an_empty_receive_ring_is_full_until_a_kick",
        ],
    ),
    ("10 a FIN without buffers is premature", &["appendix_b_10_no_fin_while_data_waits_for_room"]),
    (
        "11 idle flows cost time on each wake-up",
        &[
            "an_owner_has_one_entry_and_is_woken_at_its_earliest",
            "what_happens_to_one_flow_costs_thousands_of_idle_ones_no_call",
        ],
    ),
    (
        "12 one connection monopolises the loop",
        &["one_flow_cannot_starve_the_others", "one_spliced_connection_cannot_starve_another"],
    ),
    (
        "13 a full table or no descriptors spin",
        &[
            "accepting_without_descriptors_resets_the_connection_and_never_spins",
            "a_listener_without_descriptors_rests_and_is_fed_again",
        ],
    ),
    (
        "14 a RST for a FIN acknowledges too little",
        &["appendix_b_14_a_reset_acknowledges_syn_and_fin_too"],
    ),
    ("15 the length of UDP is ignored", &["the_length_field_of_udp_is_obeyed"]),
    ("16 a UDP checksum of zero", &["appendix_b_16_a_checksum_of_zero_is_sent_as_all_ones"]),
    ("17 flow labels predictable or zero", &["v6_frames_of_a_flow_carry_a_label_of_their_own"]),
    (
        "18 frames lost on the tap count as sent",
        &["what_the_kernel_refuses_is_kept_and_tried_again"],
    ),
    (
        "19 a blocking write stops all flows",
        &["a_client_that_stops_reading_stops_the_sink_until_it_reads_again"],
    ),
    (
        "20 room wraps below zero",
        &["appendix_b_20_room_never_wraps_below_zero", "room_discounts_the_overhead_that_is_seen"],
    ),
    (
        "21 numbers of the front-end are unchecked",
        &[
            "nonsense_about_rings_is_refused_and_the_session_goes_on",
            "nonsense_about_memory_is_refused_and_the_old_table_stays",
        ],
    ),
    ("22 padding behind IPv6 drops the frame", &["padding_of_frames_is_no_payload"]),
];

/// The names of all test functions below `folder`.
fn tests_below(folder: &Path, names: &mut BTreeSet<String>) {
    let entries = fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    for path in entries.map(|entry| entry.unwrap().path()) {
        if path.is_dir() {
            tests_below(&path, names);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            let mut attributed = false;
            for line in text.lines().map(str::trim) {
                if line == "#[test]" {
                    attributed = true;
                } else if let Some(rest) = line.strip_prefix("fn ") {
                    let name = rest.split(['(', '<']).next().unwrap_or_default();
                    if std::mem::take(&mut attributed) {
                        names.insert(name.to_owned());
                    }
                }
            }
        }
    }
}

fn missing(table: &[Row], names: &BTreeSet<String>) -> Vec<String> {
    let known = |test: &str| names.contains(test);
    table
        .iter()
        .flat_map(|(row, tests)| {
            let gone = tests.iter().filter(|test| !known(test));
            gone.map(move |test| format!("{row}: no test named {test}"))
                .chain(tests.is_empty().then(|| format!("{row}: no test at all")))
        })
        .collect()
}

#[test]
fn every_lesson_of_the_original_has_a_test_of_ours() {
    let mut names = BTreeSet::new();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests_below(&root.join("src"), &mut names);
    tests_below(&root.join("tests"), &mut names);
    assert_eq!(missing(CAPABILITIES, &names), [""; 0]);
    assert_eq!(missing(DEFECTS, &names), [""; 0]);
}

#[test]
fn a_test_that_does_not_exist_is_missed() {
    let names = BTreeSet::from(["there".to_owned()]);
    let table: &[Row] = &[("row", &["there", "gone"]), ("bare", &[])];
    assert_eq!(missing(table, &names), ["row: no test named gone", "bare: no test at all"]);
}
