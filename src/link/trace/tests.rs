use super::*;
use proptest::prelude::*;

const MACS: [u8; 12] = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 1];

#[track_caller]
fn says(bytes: &[u8], expected: &str) {
    assert_eq!(InWords { bytes, len: bytes.len() }.to_string(), expected);
}

fn frame(ether_type: u16, parts: &[&[u8]]) -> Vec<u8> {
    [&MACS[..], &ether_type.to_be_bytes(), &parts.concat()].concat()
}

/// An IPv4 frame from 192.0.2.10 to 198.51.100.1.
fn v4_frame(number: u8, fragment: u16, payload: &[u8]) -> Vec<u8> {
    let len = (20 + payload.len() as u16).to_be_bytes();
    let [f0, f1] = fragment.to_be_bytes();
    let mut header =
        [0x45, 0, len[0], len[1], 0, 1, f0, f1, 64, number, 0, 0, 192, 0, 2, 10, 198, 51, 100, 1];
    let mut sum = crate::wire::checksum::Sum::new();
    sum.add_bytes(&header);
    header[10..12].copy_from_slice(&sum.finish().to_be_bytes());
    frame(0x0800, &[&header, payload])
}

fn v6_frame(next: u8, payload: &[u8]) -> Vec<u8> {
    let len = (payload.len() as u16).to_be_bytes();
    let mut header = vec![0x60, 0, 0, 0, len[0], len[1], next, 64];
    header.extend("2001:db8::10".parse::<std::net::Ipv6Addr>().unwrap().octets());
    header.extend("2001:db8::1".parse::<std::net::Ipv6Addr>().unwrap().octets());
    frame(0x86dd, &[&header, payload])
}

const SEGMENT: [u8; 23] =
    [0x0f, 0xa0, 0, 80, 0, 0, 0, 7, 0, 0, 0, 9, 0x50, 0x18, 0x20, 0, 0, 0, 0, 0, b'a', b'b', b'c'];

#[test]
fn frames_are_told_by_what_their_headers_say() {
    let arp = [
        &[0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 1, 192, 0, 2, 10][..],
        &[0, 0, 0, 0, 0, 0, 192, 0, 2, 1],
    ]
    .concat();
    says(&frame(0x0806, &[&arp]), "ARP who has 192.0.2.1, tell 192.0.2.10 (02:00:00:00:00:01)");
    let mut reply = arp;
    reply[7] = 2;
    says(&frame(0x0806, &[&reply]), "ARP 192.0.2.10 is at 02:00:00:00:00:01");
    says(
        &v4_frame(6, 0, &SEGMENT),
        "192.0.2.10:4000 > 198.51.100.1:80 TCP [P.] seq 7 ack 9 win 8192 len 3",
    );
    says(
        &v6_frame(6, &SEGMENT),
        "[2001:db8::10]:4000 > [2001:db8::1]:80 TCP [P.] seq 7 ack 9 win 8192 len 3",
    );
    let datagram = [0x0f, 0xa0, 0, 53, 0, 10, 0, 0, 1, 2];
    says(&v4_frame(17, 0, &datagram), "192.0.2.10:4000 > 198.51.100.1:53 UDP len 2");
    let echo = [8, 0, 0, 0, 0, 5, 0, 6, 1];
    says(&v4_frame(1, 0, &echo), "192.0.2.10 > 198.51.100.1 ICMP type 8 code 0 id 5 seq 6, len 9");
    says(
        &v6_frame(58, &[135, 0, 0, 0, 0, 0, 0, 0]),
        "2001:db8::10 > 2001:db8::1 ICMPv6 type 135 code 0",
    );
    says(&v4_frame(47, 0, &[0; 4]), "192.0.2.10 > 198.51.100.1 protocol 47, len 4");
    says(&v4_frame(17, 0x2001, &[0; 8]), "192.0.2.10 > 198.51.100.1 UDP fragment at 8, len 8");
}

#[test]
fn what_makes_no_sense_is_shown_as_that() {
    says(&[0; 13], "13 bytes, less than a header");
    says(&frame(0x0806, &[&[0; 28]]), "Arp that makes no sense, 42 bytes");
    says(&frame(0x0800, &[&[0x60]]), "Ipv4 that makes no sense, 15 bytes");
    says(&v4_frame(6, 0, &[0; 8]), "192.0.2.10 > 198.51.100.1 TCP, len 8");
    let other = InWords { bytes: &frame(0x88cc, &[&[0; 4]]), len: 18 }.to_string();
    assert!(other.ends_with("from 02:00:00:00:00:01 to ff:ff:ff:ff:ff:ff, 18 bytes"), "{other}");
}

proptest! {
    #[test]
    fn any_bytes_are_told_in_a_line(bytes in prop::collection::vec(any::<u8>(), 0..200), more: u16) {
        let len = bytes.len() + usize::from(more);
        for ether_type in [0x0800u16, 0x0806, 0x86dd] {
            let mut bytes = bytes.clone();
            if let Some(place) = bytes.get_mut(12..14) {
                place.copy_from_slice(&ether_type.to_be_bytes());
            }
            let text = InWords { bytes: &bytes, len }.to_string();
            prop_assert!(!text.is_empty() && text.len() < 300);
        }
    }
}
